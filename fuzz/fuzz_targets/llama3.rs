//! Messages of the llama3 tool-call format.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ballast_fuzz::check(ballast_chat::Format::Llama3, data));
