//! Fuzz target: see `checks::session`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::session::check(data));
