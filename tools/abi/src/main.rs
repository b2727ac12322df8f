//! Prints the Rust mirror of `kernels/abi.h`.

use bindgen::callbacks::{DeriveInfo, ParseCallbacks};

/// Every struct is plain data.
#[derive(Debug)]
struct Pod;

impl ParseCallbacks for Pod {
    fn add_derives(&self, _: &DeriveInfo<'_>) -> Vec<String> {
        vec!["bytemuck::Pod".into(), "bytemuck::Zeroable".into()]
    }
}

fn main() {
    let header = std::env::args().nth(1).unwrap_or("kernels/abi.h".into());
    let bindings = bindgen::builder()
        .header(header)
        .clang_arg("-DABI_MIRROR")
        .allowlist_file(".*abi[.]h")
        .parse_callbacks(Box::new(Pod))
        .derive_default(true)
        .prepend_enum_name(false)
        .layout_tests(true)
        .generate_comments(false)
        .disable_header_comment()
        .raw_line("//! Mirror of kernels/abi.h, which says what the fields are. Made by `make abi`; not to be edited.")
        .raw_line("#![allow(missing_docs, dead_code)]")
        .generate();
    match bindings {
        Ok(bindings) => print!("{}", bindings.to_string()),
        Err(error) => {
            eprintln!("abi: {error}");
            std::process::exit(1);
        }
    }
}
