//! Fuzz target: see `checks::resp`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::resp::check(data));
