//! The command line: any arguments are accepted, or rejected with an error in one line without control characters.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Arguments after the program's name, separated by zero bytes.
pub fn check(data: &[u8]) {
    let given = data.split(|byte| *byte == 0).map(|argument| OsString::from_vec(argument.to_vec()));
    let arguments: Vec<OsString> = std::iter::once(OsString::from("oyez")).chain(given).collect();
    let first = oyez::cli::check(&arguments);
    if let Err(why) = &first {
        assert!(!why.is_empty() && !why.contains('\n'), "{why:?}");
    }
    assert_eq!(oyez::cli::check(&arguments), first, "the same twice");
}
