//! The settings of `prefold serve`, as flags and in a configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::serve::{Cache, Log, Mode, OnFailure, ServeOptions, Size, Time};
use serde::Deserialize;

use super::options;

/// Declares the settings of a server: flags and `[serve]` of a configuration file, each optional.
macro_rules! settings {
    ($($(#[$meta:meta])* $field:ident: $type:ty,)*) => {
        /// What flags or a file say about a server.
        #[derive(Clone, Debug, Default, PartialEq, Deserialize, clap::Args)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Settings {
            $($(#[$meta])* pub $field: Option<$type>,)*
        }

        impl Settings {
            /// These settings, overridden by what `over` sets.
            pub fn under(self, over: Settings) -> Settings {
                Settings { $($field: over.$field.or(self.$field),)* }
            }
        }
    };
}

settings! {
    /// Address to listen on; another than the machine's own needs --token-file [default:
    /// 127.0.0.1:8780]
    #[arg(long, value_name = "ADDRESS", help_heading = "Server")]
    listen: SocketAddr,
    /// Where other requests go, as https://api.openai.com
    #[arg(long, value_name = "URL", help_heading = "Server")]
    upstream: String,
    /// compress, audit (measure only) or off [default: compress]
    #[arg(long, value_name = "MODE", help_heading = "Compression")]
    mode: Mode,
    /// Share of its tokens that a text keeps, as 0.5 [default: 0.5]
    #[arg(long, short, value_name = "SHARE", value_parser = options::share,
        help_heading = "Compression")]
    rate: f64,
    /// Texts of fewer tokens do not change [default: 300]
    #[arg(long, value_name = "N", help_heading = "Compression")]
    min_tokens: usize,
    /// Texts do not change that would lose a smaller share [default: 0.15]
    #[arg(long, value_name = "SHARE", help_heading = "Compression")]
    min_saving: f64,
    /// Whether the user's turns before the newest one are shortened too [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Compression")]
    compress_user: bool,
    /// Whether the model's turns before the newest one are shortened too [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Compression")]
    compress_assistant: bool,
    /// Whether source code is shortened too, by whole lines [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Compression")]
    compress_code: bool,
    /// Names of tags, comma-separated: what stands in them in a text of the user is shortened
    /// [default: context]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 0..,
        help_heading = "Compression")]
    context_tags: Vec<String>,
    /// Time for a conversation [default: 800ms]
    #[arg(long, value_name = "TIME", help_heading = "Compression")]
    deadline: Time,
    /// Time for the other calls, as /v1/compress_prompt [default: 60s]
    #[arg(long, value_name = "TIME", help_heading = "Compression")]
    call_deadline: Time,
    /// pass (the original is sent) or error (status 503) [default: pass]
    #[arg(long, value_name = "WHAT", help_heading = "Compression")]
    on_failure: OnFailure,
    /// Where results are kept: a size, or redis://HOST:PORT for replicas [default: 256MB]
    #[arg(long, value_name = "WHERE", help_heading = "Results")]
    cache: Cache,
    /// Results are forgotten that were not used for so long [default: 24h]
    #[arg(long, value_name = "TIME", help_heading = "Results")]
    cache_ttl: Time,
    /// Whether a marker stands where text was dropped, for /v1/retrieve [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Results")]
    retrieve: bool,
    /// Originals are forgotten after so long [default: 1h]
    #[arg(long, value_name = "TIME", help_heading = "Results")]
    retrieve_ttl: Time,
    /// Longest body that is read; longer ones pass through [default: 32MB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_body: Size,
    /// Longest head of a request [default: 64KB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_head: Size,
    /// Requests that are compressed or wait for it; further ones pass through [default: 64]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    queue: usize,
    /// Connections at a time [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    connections: usize,
    /// A connection is closed that sends nothing for so long [default: 60s]
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    idle: Time,
    /// An answer of the upstream is ended that sends nothing for so long [default: 10m]
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    upstream_idle: Time,
    /// A file with a token that clients must send as x-prefold-token
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    token_file: PathBuf,
    /// Requests in progress get so long to finish at SIGTERM [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Server")]
    drain: Time,
    /// A line for each request on standard error: json, text or off [default: json]
    #[arg(long, value_name = "FORM", help_heading = "Server")]
    log: Log,
}

impl Settings {
    /// The options that they make.
    pub fn options(self) -> ServeOptions {
        let mut options = ServeOptions::default();
        macro_rules! set {
            ($($field:ident),*; $($time:ident),*) => {
                $(if let Some(value) = self.$field {
                    options.$field = value;
                })*
                $(if let Some(value) = self.$time {
                    options.$time = value.0;
                })*
            };
        }
        set!(
            listen, mode, rate, min_tokens, min_saving, compress_user, compress_assistant,
            compress_code, context_tags, on_failure, cache, retrieve, queue, connections, log;
            deadline, call_deadline, cache_ttl, retrieve_ttl, max_body, idle, upstream_idle, drain
        );
        if let Some(size) = self.max_head {
            options.max_head = usize::try_from(size.0).unwrap_or(usize::MAX);
        }
        options.upstream = self.upstream.or(options.upstream);
        options.token_file = self.token_file.or(options.token_file);
        options
    }
}
