//! Fuzz target: see `checks::command_line`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| oyez_fuzz::checks::command_line::check(data));
