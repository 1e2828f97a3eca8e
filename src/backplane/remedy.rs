//! Remedies for commands that Redis rejects permanently, for the log and the operator.

/// The commands of the scripts, as ACL rules name them.
const SCRIPT_COMMANDS: &str = "+exists +hdel +hincrby +hkeys +hmget +hset +info +time +xadd +xinfo|stream";

/// The remedy for an error reply; `None` if there is nothing to add to the text of the error.
pub(super) fn remedy(command: &str, text: &str) -> Option<String> {
    let has = |part| text.contains(part);
    let remedy = match text.split(' ').next().unwrap_or("") {
        "NOAUTH" => "set --backplane-password-file",
        "WRONGPASS" => "check --backplane-user and --backplane-password-file",
        "NOPERM" if has("keys") => "grant the user ~{oyez:NAME}:*, with --backplane-name for NAME",
        "NOPERM" => return Some(format!("grant the user +{}", denied(text).unwrap_or(&acl_name(command)))),
        "WRONGTYPE" => {
            "another program has written a key of the log: delete {oyez:NAME}:log and {oyez:NAME}:state, or choose another \
             --backplane-name"
        }
        _ if has("user executing the script can't run") => {
            return Some(format!("grant the user the commands of the scripts: {SCRIPT_COMMANDS}"));
        }
        _ if has("without any password") || has("no password is set") => {
            "the server has no password: remove --backplane-password-file"
        }
        _ if has("DB index") => "the server has no database of this number: change it in --backplane",
        _ if has("unknown command") => {
            "the server must be Redis 6.2 or later, or Valkey, and must not rename its commands"
        }
        _ if has("user_script") => {
            "the keys of the log were changed: delete {oyez:NAME}:log and {oyez:NAME}:state"
        }
        _ => return None,
    };
    Some(remedy.to_owned())
}

/// The command that Redis names in quotes.
fn denied(text: &str) -> Option<&str> {
    text.split('\'').nth(1)
}

/// A command as ACL rules name it.
fn acl_name(command: &str) -> String {
    command.to_lowercase().replace(' ', "|")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts are those of Redis 7.0.15.
    #[test]
    fn error_that_an_operator_can_mend_names_the_remedy() {
        let check = |command, text, part: &str| {
            let found = remedy(command, text).unwrap_or_default();
            assert!(found.contains(part), "{text}: {found}");
        };
        check("XREAD", "NOAUTH Authentication required.", "set --backplane-password-file");
        check(
            "AUTH",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "check --backplane-user",
        );
        let text =
            "ERR AUTH <password> called without any password configured for the default user. Are you sure?";
        check("AUTH", text, "remove --backplane-password-file");
        check("HMGET", "NOPERM this user has no permissions to run the 'hmget' command", "+hmget");
        let text = "NOPERM this user has no permissions to run the 'client|setname' command";
        check("CLIENT SETNAME", text, "+client|setname");
        check("SCRIPT LOAD", "NOPERM", "+script|load");
        let text = "NOPERM this user has no permissions to access one of the keys used as arguments";
        check("XREAD", text, "~{oyez:NAME}:*");
        let text = "ERR The user executing the script can't run this command or subcommand script: e3fd, on @user_script:1.";
        check("EVALSHA", text, "+xadd");
        let text = "WRONGTYPE Operation against a key holding the wrong kind of value script: e3, on @user_script:1.";
        check("EVALSHA", text, "delete {oyez:NAME}:log");
        check("SELECT", "ERR DB index is out of range", "--backplane");
        check("XREAD", "ERR unknown command 'XREAD', with args beginning with: ", "6.2");
        let text = "ERR user_script:1: attempt to compare nil with number script: 9, on @user_script:1.";
        check("EVALSHA", text, "were changed");
        assert_eq!(remedy("EVALSHA", "OYEZREPLID the server does not report its replication id"), None);
    }
}
