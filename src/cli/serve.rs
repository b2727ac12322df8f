//! `prefold serve`: the server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::Error;
use crate::serve::{Cache, Log, Mode, OnFailure, ServeOptions, Server, Size, Time};
use serde::Deserialize;

use super::failure::{Outcome, usage};
use super::{config, interrupt, model, options};

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
    /// pass (the original goes on) or error (status 503) [default: pass]
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

/// Serves compression over HTTP, and proxies a provider
///
/// Conversations sent to /v1/compress, or through the server to --upstream, come out with their
/// long tool results and documents shortened; all other bytes stay. A text that was shortened once
/// becomes the same bytes ever after, so that providers' prompt caches hold. Where compression
/// fails, the original goes on.
///
/// A file says the same under [serve], as `min-tokens = 500`: prefold.toml, or the one of --config.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Ask the server that listens there whether it is ready, for health checks
    #[arg(long, help_heading = "Server")]
    check: bool,
    /// A configuration file in place of prefold.toml
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    config: Option<PathBuf>,
    #[command(flatten)]
    model: model::Args,
    #[command(flatten)]
    adapter: model::AdapterArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let file = match &args.config {
        Some(path) => config::read_named(path)?.serve,
        None => config::get()?.serve.clone(),
    };
    let options = options_of(file.unwrap_or_default().under(args.settings));
    if args.check {
        return is_ready(options.listen);
    }
    usage(options.check())?;
    let model = args.model.open_to_score(&args.adapter)?;
    let server = Server::start(model.engine, options)?;
    eprintln!("prefold: {} on http://{}", model.name, server.address());
    while !interrupt::told() {
        std::thread::sleep(Duration::from_millis(50));
    }
    if !server.stop() {
        eprintln!("prefold: some requests did not finish in time");
    }
    Ok(())
}

/// Asks a server of this machine whether it is ready.
fn is_ready(listen: SocketAddr) -> Outcome {
    const PATIENCE: Duration = Duration::from_secs(2);
    let ip = match (listen.ip().is_unspecified(), listen.is_ipv4()) {
        (false, _) => listen.ip(),
        (true, true) => Ipv4Addr::LOCALHOST.into(),
        (true, false) => Ipv6Addr::LOCALHOST.into(),
    };
    let address = SocketAddr::new(ip, listen.port());
    let ask = || -> std::io::Result<[u8; 12]> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    match ask().map_err(Error::io(address.to_string()))? {
        answer if answer.ends_with(b" 200") => Ok(()),
        _ => Err(Error::Device {
            device: address.to_string(),
            reason: "the server is not ready".into(),
        }
        .into()),
    }
}

/// The options that settings make.
pub fn options_of(settings: Settings) -> ServeOptions {
    let mut options = ServeOptions::default();
    macro_rules! set {
        ($($field:ident),*; $($time:ident),*) => {
            $(if let Some(value) = settings.$field {
                options.$field = value;
            })*
            $(if let Some(value) = settings.$time {
                options.$time = value.0;
            })*
        };
    }
    set!(
        listen, mode, rate, min_tokens, min_saving, compress_user, compress_assistant,
        compress_code, context_tags, on_failure, cache, retrieve, queue, connections, log;
        deadline, call_deadline, cache_ttl, retrieve_ttl, max_body, idle, upstream_idle, drain
    );
    if let Some(size) = settings.max_head {
        options.max_head = usize::try_from(size.0).unwrap_or(usize::MAX);
    }
    options.upstream = settings.upstream.or(options.upstream);
    options.token_file = settings.token_file.or(options.token_file);
    options
}
