//! Fuzz target: see `checks::commands`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::commands::check(data));
