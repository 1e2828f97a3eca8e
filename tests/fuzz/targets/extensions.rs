//! Fuzz target: see `checks::extensions`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::extensions::check(data));
