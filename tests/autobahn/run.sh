#!/usr/bin/env bash
# Runs the Autobahn suite (setup.sh) as a client against a WebSocket echo server.
#
#   run.sh URL [CASE-PATTERN ...]      e.g. run.sh ws://127.0.0.1:9001 '1.*' '6.*'
#
# Environment: AUTOBAHN_VENV; AUTOBAHN_OUT (reports, default a new temporary folder);
#   AUTOBAHN_EXCLUDE  patterns left out, e.g. '9.*' or '9.* 12.* 13.*'
#   AUTOBAHN_STRICT=1 counts NON-STRICT (conforming, but not the suite's preferred behaviour) as failed
#   AUTOBAHN_STRICT_EXCEPTIONS=FILE  the same, except for the cases that FILE lists (one 'CASE  reason'
#                     a line, '#' begins a comment); a listed case that is not NON-STRICT counts as failed,
#                     so the list can only shrink together with the reasons for it
#   AUTOBAHN_DEFLATE=1 counts UNIMPLEMENTED (compression not negotiated) as failed instead of skipped
#   AUTOBAHN_LIMIT    seconds for the whole run (default 3600)
# Prints one line for each case that is not plainly OK, then 'N passed, N failed, N skipped'.
# Exits 0 only if every selected case was run and none failed.
set -euo pipefail
url=${1:?usage: run.sh URL [CASE-PATTERN ...]}; shift
venv=${AUTOBAHN_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/oyez-autobahn}
out=${AUTOBAHN_OUT:-$(mktemp -d -t autobahn.XXXXXX)}
mkdir -p "$out"; rm -rf "$out/reports"
"$venv/bin/python" - "$url" "$out" "${AUTOBAHN_EXCLUDE:-}" "$@" <<'PY'
import json, sys
url, out, excl = sys.argv[1:4]
# The defaults, 5 and 1, are too short for a busy machine.
seconds = dict.fromkeys(["openHandshakeTimeout", "closeHandshakeTimeout", "serverConnectionDropTimeout"], 60)
json.dump({"outdir": out + "/reports", "servers": [{"url": url, "agent": "server"}], "options": seconds,
           "cases": sys.argv[4:] or ["*"], "exclude-cases": excl.split(), "exclude-agent-cases": {}},
          open(out + "/spec.json", "w"))
PY
start=$SECONDS
rc=0
# --foreground: an interrupt from the terminal ends the suite too.
(cd "$out" && exec timeout --foreground -k 5 "${AUTOBAHN_LIMIT:-3600}" \
  "$venv/bin/wstest" -m fuzzingclient -s spec.json >wstest.log 2>&1) || rc=$?
exec "$venv/bin/python" - "$out" "$rc" $((SECONDS - start)) <<'PY'
import json, os, re, sys
out, rc, secs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
log = open(out + "/wstest.log").read()
planned = re.search(r"^Cases = (\[.*\])$", log, re.M)
planned = re.findall(r"[0-9.]+", planned.group(1)) if planned else []
try:
    got = json.load(open(out + "/reports/index.json")).get("server", {})
except (IOError, ValueError):
    got = {}
strict, deflate = os.environ.get("AUTOBAHN_STRICT") == "1", os.environ.get("AUTOBAHN_DEFLATE") == "1"
excepted = set()
exceptions = os.environ.get("AUTOBAHN_STRICT_EXCEPTIONS")
if exceptions:
    strict = True
    for number, line in enumerate(open(exceptions), 1):
        words = line.split("#")[0].split(None, 1)
        if not words:
            continue
        if len(words) < 2 or not re.fullmatch(r"\d+(\.\d+)+", words[0]) or words[0] in excepted:
            sys.exit("%s:%d: expected a case, not listed before, and a reason" % (exceptions, number))
        excepted.add(words[0])
passed = failed = skipped = 0
for case in planned:
    r = got.get(case)
    if r is None:
        failed += 1
        print("FAIL %-8s not run (%s)" % (case, "the run ended early, exit status %d" % rc))
        continue
    b, c = str(r["behavior"]), str(r["behaviorClose"])
    if case in excepted and b != "NON-STRICT":
        failed += 1
        print("FAIL %-8s listed as an exception from strict, but it is %s" % (case, b))
        continue
    if b == "UNIMPLEMENTED" and not deflate:
        skipped += 1
        continue
    ok = b in ("OK", "INFORMATIONAL") or (b == "NON-STRICT" and (not strict or case in excepted))
    ok = ok and c in ("OK", "INFORMATIONAL")
    passed, failed = passed + ok, failed + (not ok)
    if not ok or b != "OK" or c != "OK":
        why = ""
        try:
            d = json.load(open("%s/reports/%s" % (out, r["reportfile"])))
            why = d["result"] if b != "OK" else d["resultClose"]
        except (IOError, ValueError, KeyError):
            pass
        print(("%-4s %-8s %s, close %s (code %s): %s" % ("note" if ok else "FAIL", case, b, c, r["remoteCloseCode"], why))[:200])
for case in sorted(excepted - set(planned)):
    failed += 1
    print("FAIL %-8s listed as an exception from strict, but not among the cases run" % case)
if "Traceback" in log or "Unhandled Error" in log:
    print("FAIL suite    an exception inside the suite itself: see %s/wstest.log" % out)
    failed += 1
if not planned:
    print("FAIL suite    did not start: see %s/wstest.log" % out)
    failed += 1
print("reports in %s/reports, %d s" % (out, secs))
print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
sys.exit(0 if not failed and passed else 1)
PY
