//! Fuzz target: see `checks::head`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::head::check(data));
