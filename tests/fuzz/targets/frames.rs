//! Fuzz target: see `checks::frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::frames::check(data));
