//! `prefold.toml`: what is used where neither a flag nor an environment variable says otherwise.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::Error;
use serde::Deserialize;

use super::failure::{Failure, Outcome};

/// Name of the file in the working folder and in the platform's folder for configuration.
const FILE: &str = "prefold.toml";

/// What a file may set.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// As `--model`.
    pub model: Option<PathBuf>,
    /// As `--device`.
    pub device: Option<String>,
    /// As `--precision`.
    pub precision: Option<String>,
    /// The adapter of `prefold encode`.
    pub adapter: Option<PathBuf>,
    /// As `PREFOLD_LOG`.
    pub log: Option<String>,
    /// What `prefold serve` does.
    #[cfg(feature = "serve")]
    pub serve: Option<super::serve_settings::Settings>,
}

/// The settings of both files; the working folder's come first. They are read once.
pub fn get() -> Outcome<&'static Config> {
    static READ: OnceLock<Config> = OnceLock::new();
    if let Some(config) = READ.get() {
        return Ok(config);
    }
    let mut config = Config::default();
    if let Some(folders) = directories::ProjectDirs::from("", "", "prefold") {
        config = config.under(read(&folders.config_dir().join(FILE))?);
    }
    config = config.under(read(Path::new(FILE))?);
    Ok(READ.get_or_init(|| config))
}

impl Config {
    /// These settings, overridden by what `over` sets.
    fn under(self, over: Config) -> Config {
        Config {
            model: over.model.or(self.model),
            device: over.device.or(self.device),
            precision: over.precision.or(self.precision),
            adapter: over.adapter.or(self.adapter),
            log: over.log.or(self.log),
            #[cfg(feature = "serve")]
            serve: match (self.serve, over.serve) {
                (Some(own), Some(over)) => Some(own.under(over)),
                (own, over) => over.or(own),
            },
        }
    }
}

/// The settings of a file that was named: it has to be there.
#[cfg(feature = "serve")]
pub fn read_named(path: &Path) -> Outcome<Config> {
    match path.exists() {
        true => read(path),
        false => Err(Error::io(path)(ErrorKind::NotFound.into()).into()),
    }
}

/// Reads a file, if it is there. A relative path in it starts at its folder.
fn read(path: &Path) -> Outcome<Config> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Config::default()),
        Err(error) => return Err(Error::io(path)(error).into()),
    };
    parse(&text, path).map_err(|reason| {
        Failure::Usage(format!("{}: {reason}; see `prefold help`", path.display()))
    })
}

fn parse(text: &str, path: &Path) -> Result<Config, String> {
    let mut config: Config = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            1 + text.as_bytes()[..span.start.min(text.len())]
                .iter()
                .filter(|&&b| b == b'\n')
                .count()
        });
        format!("line {line}: {}", error.message().replace('\n', " "))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for value in [&mut config.model, &mut config.adapter]
        .into_iter()
        .flatten()
    {
        // A model may be a name instead of a path.
        let beside = folder.join(&*value);
        if beside.exists() {
            *value = beside;
        }
    }
    #[cfg(feature = "serve")]
    if let Some(token) = config.serve.as_mut().and_then(|s| s.token_file.as_mut()) {
        *token = folder.join(&*token);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_folder_overrides_the_users_file() {
        let parse = |text| parse(text, Path::new("prefold.toml")).unwrap();
        let users = parse("model = 'a.gguf'\ndevice = 'cpu'");
        let own = parse("model = 'org/repo:Q8_0'");
        let both = users.under(own);
        assert_eq!(both.model.unwrap(), Path::new("org/repo:Q8_0"));
        assert_eq!(both.device.unwrap(), "cpu");
        assert_eq!(both.adapter, None);
    }

    #[test]
    fn a_malformed_file_is_told_with_its_line() {
        let parse = |text| parse(text, Path::new("prefold.toml"));
        let line = parse("device = 'cpu'\nmodle = 'x'").unwrap_err();
        assert!(line.contains("line 2") && line.contains("modle"), "{line}");
        assert!(parse("model = ").unwrap_err().contains("line 1"));
        assert!(parse("device = 3").is_err());
    }

    #[test]
    fn a_relative_path_starts_at_the_files_folder() {
        let config = parse(
            "model = 'lib.rs'\nadapter = 'none'",
            Path::new("src/prefold.toml"),
        )
        .unwrap();
        assert_eq!(config.model.unwrap(), Path::new("src/lib.rs"));
        assert_eq!(config.adapter.unwrap(), Path::new("none"));
    }
}
