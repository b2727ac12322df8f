//! The address that requests are forwarded to, and the client for it.

use std::io;
use std::time::Duration;

use axum::body::Body;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::error::{Error, Result};

/// Time for a connection to the upstream.
const CONNECT: Duration = Duration::from_secs(10);
/// Connections are kept for so long without a request: less than most servers do.
const KEEP: Duration = Duration::from_secs(30);

/// An upstream and the connections to it.
pub(super) struct Upstream {
    scheme: Scheme,
    authority: Authority,
    /// What its paths begin with, without a slash at the end.
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Body>,
}

impl Upstream {
    /// # Errors
    /// [`Error::Input`] for what is not an address; [`Error::Io`] if TLS cannot be set up.
    pub fn new(address: &str) -> Result<Self> {
        let bad = || {
            Error::input(
                format!("upstream {address}"),
                "expected an address as https://api.openai.com",
            )
        };
        let parts = address.parse::<Uri>().map_err(|_| bad())?.into_parts();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| Error::io(format!("upstream {address}"))(io::Error::other(error)))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Ok(Upstream {
            scheme: parts.scheme.ok_or_else(bad)?,
            authority: parts.authority.ok_or_else(bad)?,
            base: parts
                .path_and_query
                .map(|path| path.path().trim_end_matches('/').to_string())
                .unwrap_or_default(),
            client: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(KEEP)
                .build(connector),
        })
    }

    /// The address of a request's path there. A path that repeats the beginning of the upstream's
    /// own, as clients do whose base ends in `/v1`, has it once.
    pub fn uri(&self, of: &Uri) -> Option<Uri> {
        let path = of.path_and_query().map_or("/", PathAndQuery::as_str);
        let base = match path.strip_prefix(&self.base) {
            Some(rest) if rest.is_empty() || rest.starts_with(['/', '?']) => "",
            _ => self.base.as_str(),
        };
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(format!("{base}{path}"))
            .build()
            .ok()
    }

    /// Sends a request.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        self.client.request(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_together() {
        let uri = |base: &str, path: &str| {
            let upstream = Upstream::new(base).unwrap();
            upstream.uri(&path.parse().unwrap()).unwrap().to_string()
        };
        assert_eq!(
            uri("https://h", "/v1/models?x=1"),
            "https://h/v1/models?x=1"
        );
        assert_eq!(uri("http://h:1/api/", "/v1/a"), "http://h:1/api/v1/a");
        assert_eq!(uri("https://h/v1", "/v1/chat"), "https://h/v1/chat");
        assert_eq!(
            uri("https://h/v1", "/v1beta/chat"),
            "https://h/v1/v1beta/chat"
        );
        assert_eq!(
            uri("https://h/v1", "/chat/completions"),
            "https://h/v1/chat/completions"
        );
    }
}
