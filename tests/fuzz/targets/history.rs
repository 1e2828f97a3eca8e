//! Fuzz target: see `checks::history`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::history::check(data));
