//! Messages of the qwen_xml tool-call format.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ballast_fuzz::check(ballast_chat::Format::QwenXml, data));
