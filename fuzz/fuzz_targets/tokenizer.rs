#![no_main]

use prefold_fuzz::run;

libfuzzer_sys::fuzz_target!(|data: &[u8]| run("tokenizer", data));
