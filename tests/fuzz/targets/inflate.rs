//! Fuzz target: see `checks::inflate`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::inflate::check(data));
