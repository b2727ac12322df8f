//! The `prefold` program: the library on the command line.
#![deny(unsafe_code)]

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(prefold::cli::run(std::env::args_os().collect()))
}
