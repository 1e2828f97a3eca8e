//! TLS on the real server, tested with OpenSSL: accepted versions and suites, certificate files, reload at SIGHUP,
//! and memory of idle connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::client::Client;
use crate::support::frames;
use crate::support::http::get;
use crate::support::process::{Server, TEST_TIMEOUT, oyez};
use crate::support::tls::{Identity, Tunnel};

/// A request after which the server closes.
const LAST: &str = "GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// What `openssl s_client` prints when it sends `input` and waits for the server's end.
fn s_client(server: &Server, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &server.address.to_string(), "-servername", "localhost", "-ign_eof"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the openssl command");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn trusting(identity: &Identity, arguments: &[&str]) -> Vec<String> {
    let ca = ["-CAfile".to_owned(), identity.certificate().display().to_string()];
    ca.into_iter().chain(arguments.iter().map(|word| (*word).to_owned())).collect()
}

fn ask(server: &Server, identity: &Identity, arguments: &[&str]) -> String {
    let arguments = trusting(identity, arguments);
    s_client(server, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), LAST)
}

#[test]
fn tls_1_2_and_1_3_are_accepted_and_older_versions_rejected() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, &[]);
    for (flag, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let said = ask(&server, &identity, &[flag]);
        assert!(said.contains(&format!("New, {name}, Cipher is ")), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        assert!(said.contains("HTTP/1.1 404 Not Found"), "{said}");
        assert!(said.contains("Compression: NONE"), "{said}");
    }
    for flag in ["-tls1", "-tls1_1"] {
        let said = ask(&server, &identity, &[flag, "-cipher", "ALL:@SECLEVEL=0"]);
        assert!(said.contains(" alert ") && said.contains("Cipher is (NONE)"), "{said}");
    }
    // SSL 3.0, which current libraries do not implement.
    let mut hello = vec![22, 3, 0, 0, 45, 1, 0, 0, 41, 3, 0];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 5, 1, 0]);
    let mut client = Client::new(server.connect());
    client.send(&hello);
    let mut answer = Vec::new();
    client.stream.read_to_end(&mut answer).unwrap();
    assert_eq!((answer[0], answer[5], answer.len()), (21, 2, 7), "one fatal alert: {answer:?}");
    let log = server.stop();
    assert_eq!(log.matches("reason=tls_failed why=nothing_in_common").count(), 3, "{log}");
}

#[test]
fn weak_cipher_suite_is_rejected() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, &[]);
    for weak in ["aRSA+kRSA", "AESCCM", "SHA1", "ECDHE+AES+SHA256:!AESGCM", "NULL", "aNULL"] {
        let said = ask(&server, &identity, &["-tls1_2", "-cipher", &format!("{weak}:@SECLEVEL=0")]);
        assert!(said.contains("Cipher is (NONE)"), "{weak}: {said}");
        assert!(said.contains("alert handshake failure"), "{weak}: {said}");
    }
    for good in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"] {
        let said = ask(&server, &identity, &["-tls1_2", "-cipher", good]);
        assert!(said.contains(&format!("Cipher is {good}")), "{said}");
    }
}

#[test]
fn alpn_selects_http_1_1() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, &[]);
    let said = ask(&server, &identity, &["-alpn", "h2,http/1.1"]);
    assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
    let said = ask(&server, &identity, &[]);
    assert!(said.contains("No ALPN negotiated") && said.contains("HTTP/1.1 404"), "{said}");
    let said = ask(&server, &identity, &["-alpn", "h2"]);
    assert!(said.contains("alert no application protocol"), "{said}");
}

/// Two connections, the second with the first's session; returns true if it was resumed.
fn is_resumed(server: &Server, identity: &Identity, arguments: &[&str]) -> bool {
    let session = identity.file("session");
    let path = session.to_str().unwrap();
    ask(server, identity, &[arguments, &["-sess_out", path]].concat());
    resumes(server, identity, arguments, &session)
}

fn resumes(server: &Server, identity: &Identity, arguments: &[&str], session: &Path) -> bool {
    let said = ask(server, identity, &[arguments, &["-sess_in", session.to_str().unwrap()]].concat());
    assert!(said.contains("HTTP/1.1 404"), "{said}");
    said.contains("\nReused, ")
}

#[test]
fn session_is_resumed_with_and_without_tickets() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, &["--tls-sessions-max=1"]);
    assert!(is_resumed(&server, &identity, &["-tls1_3"]));
    assert!(is_resumed(&server, &identity, &["-tls1_2"]));
    let without = ["-tls1_2", "-no_ticket"];
    assert!(is_resumed(&server, &identity, &without));
    // Another takes the one place.
    let other = identity.file("other");
    ask(&server, &identity, &[&without[..], &["-sess_out", other.to_str().unwrap()]].concat());
    assert!(!resumes(&server, &identity, &without, &identity.file("session")), "the oldest is forgotten");
    let forgetful = Server::start_tls(&identity, &["--tls-sessions-max=0"]);
    assert!(!is_resumed(&forgetful, &identity, &without));
    assert!(is_resumed(&forgetful, &identity, &["-tls1_2"]), "a ticket needs no memory");
}

#[test]
fn renegotiation_is_rejected() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, &[]);
    // A line that begins with R makes s_client ask for it.
    let arguments = trusting(&identity, &["-tls1_2"]);
    let arguments: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| *word != "-ign_eof").collect();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &server.address.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut said = String::new();
    while !said.contains("Verify return code") {
        assert!(stdout.read_line(&mut said).unwrap() > 0, "{said}");
    }
    // It ends by itself when that is rejected.
    stdin.write_all(b"R\n").unwrap();
    stdout.read_to_string(&mut said).unwrap();
    let output = child.wait_with_output().unwrap();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
}

#[test]
fn certificate_chain_is_sent_whole() {
    let identity = Identity::chained();
    let server = Server::start_tls(&identity, &[]);
    let root = identity.root();
    let arguments = ["-CAfile", root.to_str().unwrap(), "-showcerts"];
    let said = s_client(&server, &arguments, LAST);
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    assert_eq!(said.matches("-----BEGIN CERTIFICATE-----").count(), 2, "{said}");
}

#[test]
fn plain_http_on_a_tls_port_gets_an_error() {
    let server = Server::start_tls(&Identity::new(), &[]);
    let said = server.ask(LAST);
    assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("tls_expected"), "{said}");
    assert!(said.contains("\r\nDate: "), "{said}");
    let said = server.ask("\u{1}\u{2}nonsense");
    assert!(!said.starts_with("HTTP/1.1"), "{said:?}");
    let log = server.stop();
    assert!(log.contains("reason=tls_failed why=plain_http\n"), "{log}");
    assert!(log.contains("reason=tls_failed why=not_tls\n"), "{log}");
}

#[test]
fn tls_on_a_plain_port_is_rejected_at_once() {
    let server = Server::start_command(oyez(&["serve", "--listen", "127.0.0.1:0"]));
    for _ in 0..8 {
        // Whether a line feed is in it is up to its random bytes.
        let said = s_client(&server, &[], "");
        assert!(said.contains("wrong version number"), "{said}");
    }
    let said = server.ask([22, 3, 1]);
    assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("this port does not use TLS"), "{said}");
    let log = server.stop();
    assert_eq!(log.matches("reason=rejected status=400").count(), 9, "{log}");
}

#[test]
fn client_that_distrusts_the_certificate_is_logged() {
    let server = Server::start_tls(&Identity::new(), &[]);
    let stranger = Identity::new();
    let said = ask(&server, &stranger, &["-verify_return_error"]);
    assert!(said.contains("verify error"), "{said}");
    let log = server.stop();
    assert!(log.contains("reason=tls_failed why=alert_"), "{log}");
}

#[test]
fn invalid_certificate_file_is_one_error_line() {
    let check = |certificate: &Path, key: &Path, says: &[&str]| {
        let output = oyez(&["serve", "--listen=127.0.0.1:0", "--tls-cert"])
            .args([certificate.as_os_str(), "--tls-key".as_ref(), key.as_os_str()])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let line = text.lines().find(|line| line.starts_with("oyez: ")).unwrap();
        assert!(says.iter().all(|word| line.contains(word)), "{line}");
    };
    let (identity, other) = (Identity::new(), Identity::new());
    let (certificate, key) = (identity.certificate(), identity.key());
    check(&identity.file("nowhere"), &key, &["--tls-cert", "nowhere", "No such file"]);
    check(&certificate, &identity.file("nowhere"), &["--tls-key", "nowhere", "No such file"]);
    check(&key, &key, &["--tls-cert", "no certificate found"]);
    check(&certificate, &certificate, &["--tls-key", "no private key found"]);
    // Files in formats that editors and other programs write are named as such in the error.
    let read = |path: &Path| std::fs::read(path).unwrap();
    let wrong = identity.file("wrong");
    let marked = [&b"\xef\xbb\xbf"[..], &read(&certificate)].concat();
    std::fs::write(&wrong, &marked).unwrap();
    check(&wrong, &key, &["--tls-cert", "byte order mark", "sed -i"]);
    std::fs::write(&wrong, [&b"\xef\xbb\xbf"[..], &read(&key)].concat()).unwrap();
    check(&certificate, &wrong, &["--tls-key", "byte order mark"]);
    let wide: Vec<u8> = read(&certificate).into_iter().flat_map(|byte| [byte, 0]).collect();
    std::fs::write(&wrong, [&b"\xff\xfe"[..], &wide].concat()).unwrap();
    check(&wrong, &key, &["--tls-cert", "UTF-16", "iconv"]);
    let openssl = |arguments: &str| {
        let arguments = arguments.replace("CERT", certificate.to_str().unwrap());
        let arguments =
            arguments.replace("KEY", key.to_str().unwrap()).replace("OUT", wrong.to_str().unwrap());
        let output = Command::new("openssl").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    openssl("x509 -in CERT -outform der -out OUT");
    check(&wrong, &key, &["--tls-cert", "(DER)", "openssl x509"]);
    openssl("pkey -in KEY -outform der -out OUT");
    check(&certificate, &wrong, &["--tls-key", "(DER)", "openssl pkey"]);
    openssl("pkcs12 -export -in CERT -inkey KEY -passout pass:x -out OUT");
    check(&wrong, &wrong, &["--tls-cert", "PKCS#12", "openssl pkcs12"]);
    openssl("pkey -in KEY -aes256 -passout pass:secret -out OUT");
    check(&certificate, &wrong, &["--tls-key", "encrypted", "openssl pkey"]);
    openssl("ec -in KEY -aes256 -passout pass:secret -out OUT");
    check(&certificate, &wrong, &["--tls-key", "encrypted", "openssl pkey"]);
    for (arguments, name) in [
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1 -out OUT", "secp256k1"),
        ("ecparam -name secp521r1 -genkey -noout -out OUT", "P-521"),
        ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out OUT", "an RSA key of 1024 bits"),
        ("genrsa -traditional -out OUT 1024", "an RSA key of 1024 bits"),
        ("genpkey -algorithm ED448 -out OUT", "Ed448"),
    ] {
        openssl(arguments);
        check(&certificate, &wrong, &["--tls-key", name, "openssl ecparam -name prime256v1"]);
    }
    check(&certificate, &other.key(), &["it does not match the key in --tls-key"]);
    let bad = identity.file("bad");
    std::fs::write(&bad, "-----BEGIN CERTIFICATE-----\nsecret!\n-----END CERTIFICATE-----\n").unwrap();
    check(&bad, &key, &["--tls-cert", "invalid or truncated PEM"]);
    std::fs::write(&bad, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    check(&bad, &key, &["--tls-cert", "invalid peer certificate"]);
    std::fs::write(&bad, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    check(&certificate, &bad, &["--tls-key"]);
    let chained = Identity::chained();
    let chain = std::fs::read_to_string(chained.certificate()).unwrap();
    let (leaf, issuer) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
    std::fs::write(&bad, format!("{issuer}{leaf}")).unwrap();
    check(&bad, &chained.key(), &["--tls-cert", "wrong order", "number 2 of 2"]);
    std::fs::write(&bad, issuer).unwrap();
    check(&bad, &chained.key(), &["it does not match the key", "a certificate authority's"]);
    for one in ["--tls-cert=x", "--tls-key=x"] {
        let output = oyez(&["serve", one]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "both or neither");
    }
}

#[test]
fn ca_certificate_used_as_server_certificate_is_a_warning() {
    let day = rcgen::date_time_ymd;
    for until in [(4096, 1, 1), (2020, 1, 1)] {
        let identity = Identity::with(|params| {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.not_after = day(until.0, until.1, until.2);
        });
        let log = Server::start_tls(&identity, &[]).stop();
        assert!(log.contains("it is a certificate authority's (CA:TRUE)"), "{log}");
    }
    let log = Server::start_tls(&Identity::new(), &[]).stop();
    assert!(!log.contains("authority"), "{log}");
}

#[test]
fn expired_certificate_is_served_with_a_warning() {
    let day = rcgen::date_time_ymd;
    for (until, says) in [((2020, 1, 1), "it expired "), ((4096, 1, 1), "")] {
        let identity = Identity::with(|params| params.not_after = day(until.0, until.1, until.2));
        let server = Server::start_tls(&identity, &[]);
        assert!(ask(&server, &identity, &["-no_check_time"]).contains("HTTP/1.1 404"));
        let log = server.stop();
        assert_eq!(log.contains(" WARN "), !says.is_empty(), "{log}");
        assert!(log.contains(says), "{log}");
    }
    let identity = Identity::with(|params| params.not_before = day(4000, 1, 1));
    assert!(Server::start_tls(&identity, &[]).stop().contains("it is not valid yet"));
}

#[test]
fn sighup_loads_the_new_certificate_and_keeps_connections() {
    let (identity, renewed) = (Identity::new(), Identity::new());
    let server = Server::start_tls(&identity, &[]);
    let old_trust = Tunnel::start(server.address, Identity::copy(&identity));
    let mut stays = Client::new(old_trust.connect());
    stays.join("/ws");
    let old_certificate = std::fs::read_to_string(identity.certificate()).unwrap();

    // Valid files take effect for new connections; existing connections stay.
    identity.replace_with(&renewed);
    reload(&server, &renewed);
    stays.send_text("still here");
    assert_eq!(stays.text(), "still here");
    let new_trust = Tunnel::start(server.address, Identity::copy(&renewed));
    let mut comes = Client::new(new_trust.connect());
    comes.join("/ws");
    comes.send_text("and new");
    assert_eq!(stays.text(), "and new");

    // Bad ones change nothing.
    identity.write(&old_certificate, "nonsense");
    server.signal("HUP");
    std::thread::sleep(Duration::from_millis(100));
    reload(&server, &renewed);
    let log = server.stop();
    assert!(
        log.contains(" ERROR ") && log.contains("not reloaded, the certificate stays as it was: --tls-key"),
        "{log}"
    );
    assert!(log.contains("reloaded"), "{log}");
    assert!(!log.contains("tls_failed why=internal"), "{log}");
}

#[test]
fn certificate_expiry_is_a_metric_that_changes_with_a_reload() {
    let with_end = |year| Identity::with(|params| params.not_after = rcgen::date_time_ymd(year, 2, 3));
    let (identity, renewed) = (with_end(2040), with_end(2041));
    let server = Server::start_tls(&identity, &[]);
    let expiry = |identity: &Identity| {
        let tunnel = Tunnel::start(server.address, Identity::copy(identity));
        let page = Client::new(tunnel.connect()).ask(get("/metrics")).body;
        let name = "oyez_tls_certificate_expiry_timestamp_seconds ";
        page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{page}")).to_owned()
    };
    // 2040-02-03 and 2041-02-03.
    assert_eq!(expiry(&identity), "2211840000");
    identity.replace_with(&renewed);
    reload(&server, &renewed);
    assert_eq!(expiry(&renewed), "2243462400");
}

/// Sends SIGHUP, and waits until clients that trust only `identity` can connect.
fn reload(server: &Server, identity: &Identity) {
    server.signal("HUP");
    let start = std::time::Instant::now();
    loop {
        let said = ask(server, identity, &["-verify_return_error"]);
        if said.contains("HTTP/1.1 404") {
            return;
        }
        assert!(start.elapsed() < TEST_TIMEOUT, "{said}");
    }
}

#[test]
fn connection_without_a_descriptor_gets_an_alert() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, &[]);
    // All that is left to the server is its reserve.
    let pid = server.pid().to_string();
    let is_free = |number: &u32| !Path::new(&format!("/proc/{pid}/fd/{number}")).exists();
    let free = (0..).find(is_free).unwrap();
    let limit = format!("--nofile={free}:{free}");
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    let said = ask(&server, &identity, &[]);
    assert!(said.contains("alert internal error"), "{said}");
}

#[test]
fn idle_connection_keeps_no_buffer() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, &["--history-messages-max=0"]);
    let tunnel = Tunnel::start(server.address, Identity::copy(&identity));
    let payload = vec![b'x'; 60_000];
    // The slot table and the loop's buffers are not measured.
    let mut clients = Vec::new();
    let mut grow = |count: usize| {
        for number in 0..count {
            let mut client = Client::new(tunnel.connect());
            let channel = format!("/ws/{}", clients.len());
            client.join(&channel);
            client.send(&frames::masked(frames::BINARY, &payload));
            assert_eq!(client.frame().payload.len(), payload.len(), "{number}");
            clients.push(client);
        }
        server.resident_bytes()
    };
    let before = grow(100);
    let after = grow(300);
    let each = after.saturating_sub(before) / 300;
    assert!(each < 6 << 10, "{each} bytes for each idle connection that has had 60,000 in both directions");
}

#[test]
fn pub_and_sub_connect_over_tls() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, &[]);
    let url = format!("wss://localhost:{}", server.address.port());
    let run = |arguments: &[&str]| oyez(&[arguments, &["--url", &url]].concat());
    let ca = identity.certificate();
    let ca = ca.to_str().unwrap();
    let mut sub = run(&["sub", "prices", "--count=1001", "--tls-ca", ca]).spawn().unwrap();
    // Its first output is written when it is connected.
    let mut first = [0; 1];
    sub.stderr.as_mut().unwrap().read_exact(&mut first).unwrap();
    let lines: Vec<String> = (0..1_000).map(|number| format!("{number} {}", "x".repeat(number))).collect();
    let mut publish = run(&["pub", "prices", "--tls-insecure"]).stdin(Stdio::piped()).spawn().unwrap();
    publish.stdin.take().unwrap().write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    let output = publish.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(run(&["pub", "prices", "the last", "--tls-ca", ca]).status().unwrap().success());
    let output = sub.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        lines.iter().map(String::as_str).chain(["the last"]).collect::<Vec<_>>()
    );

    // The client does not reconnect after an untrusted certificate.
    for command in [&["pub", "prices", "x"][..], &["sub", "prices"]] {
        let output = run(command).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let advice = ": tls: certificate of an unknown issuer: trust its authority with --tls-ca FILE";
        assert!(text.contains(advice), "{text}");
    }
    let output = oyez(&["pub", "x", "y", "--tls-insecure"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
