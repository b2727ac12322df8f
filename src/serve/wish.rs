//! What a request's headers ask for.

use std::time::{Duration, Instant};

use http::HeaderMap;

use super::app::{App, Job};
use super::options::{Mode, Time};
use crate::control::CancelToken;
use crate::hard::{Budget, check_rate};

/// What the headers `x-prefold…` and `x-headroom-bypass` say.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wish {
    pub mode: Option<Mode>,
    pub rate: Option<f64>,
    pub question: Option<String>,
    pub deadline: Option<Duration>,
    pub retrieve: Option<bool>,
}

/// Longest time that a request may ask for.
const LONGEST: Duration = Duration::from_secs(600);

impl Wish {
    /// Reads headers.
    ///
    /// # Errors
    /// A line that names the header whose value cannot be read.
    pub fn read(headers: &HeaderMap) -> Result<Self, String> {
        let mut wish = Wish::default();
        for (name, value) in headers {
            let name = name.as_str();
            if !name.starts_with("x-prefold") && name != "x-headroom-bypass" {
                continue;
            }
            let value = std::str::from_utf8(value.as_bytes())
                .map_err(|_| format!("header {name}: its value is not UTF-8"))?
                .trim();
            let bad = |reason: String| format!("header {name}: {reason}");
            match name {
                "x-headroom-bypass" if flag(value).map_err(bad)? => wish.mode = Some(Mode::Off),
                "x-prefold" | "x-prefold-mode" => {
                    wish.mode = Some(match value {
                        "on" => Mode::Compress,
                        value => value.parse().map_err(bad)?,
                    });
                }
                "x-prefold-rate" => {
                    let rate = value.parse().map_err(|_| bad("expected a number".into()))?;
                    check_rate("rate", rate).map_err(|error| bad(error.to_string()))?;
                    wish.rate = Some(rate);
                }
                "x-prefold-question" => wish.question = Some(value.to_string()),
                "x-prefold-deadline" => {
                    let time: Time = value.parse().map_err(bad)?;
                    wish.deadline = Some(time.0.min(LONGEST));
                }
                "x-prefold-retrieve" => wish.retrieve = Some(flag(value).map_err(bad)?),
                _ => {}
            }
        }
        Ok(wish)
    }

    /// The work that a conversation asks for, by the server's options where the headers say
    /// nothing.
    pub fn job(&self, app: &App) -> Job {
        let options = &app.options;
        let mut messages = options.messages();
        if let Some(rate) = self.rate {
            messages.budget = Budget::Rate(rate);
        }
        messages.question.clone_from(&self.question);
        Job {
            messages,
            mode: self.mode.unwrap_or(options.mode),
            retrieve: self.retrieve.unwrap_or(options.retrieve),
            deadline: Instant::now() + self.deadline.unwrap_or(options.deadline),
            cancel: CancelToken::default(),
        }
    }
}

fn flag(value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("expected true or false, got `{value}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> Result<Wish, String> {
        let headers = headers.iter().map(|&(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, http::HeaderValue::from_static(value))
        });
        Wish::read(&headers.collect())
    }

    #[test]
    fn headers_say_what_to_do() {
        assert_eq!(read(&[("authorization", "x")]), Ok(Wish::default()));
        assert_eq!(
            read(&[("x-headroom-bypass", "true")]).unwrap().mode,
            Some(Mode::Off)
        );
        assert_eq!(read(&[("x-headroom-bypass", "false")]).unwrap().mode, None);
        assert_eq!(read(&[("x-prefold", "off")]).unwrap().mode, Some(Mode::Off));
        assert_eq!(
            read(&[("x-prefold-mode", "audit")]).unwrap().mode,
            Some(Mode::Audit)
        );
        assert_eq!(
            read(&[("x-prefold-rate", "0.25")]).unwrap().rate,
            Some(0.25)
        );
        let deadline = read(&[("x-prefold-deadline", "2s")]).unwrap().deadline;
        assert_eq!(deadline, Some(Duration::from_secs(2)));
        for (name, value) in [
            ("x-prefold", "perhaps"),
            ("x-prefold-rate", "2"),
            ("x-prefold-rate", "nan"),
            ("x-prefold-deadline", "soon"),
            ("x-headroom-bypass", "maybe"),
        ] {
            assert!(read(&[(name, value)]).unwrap_err().contains(name));
        }
    }
}
