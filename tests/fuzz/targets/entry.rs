//! Fuzz target: see `checks::entry`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::entry::check(data));
