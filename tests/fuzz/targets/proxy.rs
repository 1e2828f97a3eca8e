//! Fuzz target: see `checks::proxy`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::proxy::check(data));
