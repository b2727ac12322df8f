//! `PREFOLD_LOG`: what the library logs, as lines on standard error.

use std::io::Write;

use super::config;
use super::failure::{Failure, Outcome};

/// Starts to log by `PREFOLD_LOG`, or `log` of prefold.toml; without either only warnings are shown.
pub fn start() -> Outcome {
    let variable = std::env::var("PREFOLD_LOG")
        .ok()
        .filter(|value| !value.is_empty());
    let filter = match variable {
        Some(filter) => Some(filter),
        None => config::get()?.log.clone(),
    };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Warn);
    if let Some(filter) = &filter {
        let unknown = |word: &str| word.parse::<log::LevelFilter>().is_err() && !word.contains('=');
        if filter
            .split(',')
            .any(|word| unknown(word) && !word.starts_with("prefold"))
        {
            return Err(Failure::Usage(format!(
                "PREFOLD_LOG {filter:?}; expected error, warn, info, debug, trace or off, also as \
                 prefold::hub=debug"
            )));
        }
        // Other crates, as the HTTP client, log only what is asked for by their names.
        match filter.parse::<log::LevelFilter>() {
            Ok(level) => builder.filter_module("prefold", level),
            Err(_) => builder.parse_filters(filter),
        };
    }
    builder.format(|out, record| {
        let level = record.level().as_str().to_ascii_lowercase();
        writeln!(out, "prefold: {level}: {}", record.args())
    });
    builder.init();
    Ok(())
}
