//! One HTTP request, and the status of its answer.

use std::{fmt, str::FromStr};

use hyper::{Request, Uri};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

/// The address of something that is asked by HTTP, without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(Uri);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_http = |uri: &Uri| uri.scheme_str() == Some("http") && uri.host().is_some();
        let uri = text.parse().ok().filter(is_http);
        uri.map(Self)
            .ok_or_else(|| format!("{text:?} is not an address of HTTP: expected http://HOST[:PORT]/PATH"))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
pub struct HttpError(#[from] hyper_util::client::legacy::Error);

/// The status of the answer to a GET. A new connection is made for each: a reload may have ended the last one.
///
/// # Errors
/// There is no answer.
pub async fn status(url: &Url) -> Result<u16, HttpError> {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let request = Request::get(&url.0).body(String::new()).expect("an address makes a request");
    Ok(client.request(request).await?.status().as_u16())
}
