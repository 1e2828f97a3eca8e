//! Fuzz target: see `checks::link`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::link::check(data));
