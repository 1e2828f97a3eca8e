//! Fuzz target: see `checks::token`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::token::check(data));
