//! `prefold serve`: the server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::Error;
use crate::serve::Server;

use super::failure::{Outcome, usage};
use super::serve_settings::Settings;
use super::{config, interrupt, model};

/// Serves compression over HTTP, and proxies a provider
///
/// Conversations sent to /v1/compress, or through the server to --upstream, come out with their
/// long tool results and documents shortened; all other bytes stay. A text that was shortened once
/// becomes the same bytes ever after, so that providers' prompt caches hold. Where compression
/// fails, the original is sent.
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
    #[command(flatten)]
    encoder: model::EncoderArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let file = match &args.config {
        Some(path) => config::read_named(path)?.serve,
        None => config::get()?.serve.clone(),
    };
    let options = file.unwrap_or_default().under(args.settings).options();
    if args.check {
        return is_ready(options.listen);
    }
    usage(options.check())?;
    let model = args.model.open_to_rank(&args.adapter, &args.encoder)?;
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
