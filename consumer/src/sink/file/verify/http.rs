//! One HTTP request, and its answer: the status alone, or the body as well.

use std::{fmt, str::FromStr};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
    http::uri::PathAndQuery,
};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

/// The address of something that is asked by HTTP, without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(Uri);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A password would not be sent, and would be shown wherever the address is.
        if text.split('/').nth(2).is_some_and(|authority| authority.contains('@')) {
            return Err("a user and a password are not sent: expected http://HOST[:PORT]/PATH".to_owned());
        }
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

impl Url {
    /// The address of something below it: a path, and what is asked there.
    pub fn below(&self, path: &PathAndQuery) -> Self {
        let joined = format!("{}{path}", self.0.path().trim_end_matches('/'));
        let mut parts = self.0.clone().into_parts();
        parts.path_and_query = Some(joined.parse().expect("two paths are a path"));
        Self(Uri::from_parts(parts).expect("only the path has changed"))
    }

    /// Whether it asks something.
    pub fn has_query(&self) -> bool {
        self.0.query().is_some()
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody answers.
    #[error("no answer")]
    None(#[from] hyper_util::client::legacy::Error),
    /// The body breaks off, or is longer than it may be.
    #[error("the answer cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// The answer to a GET. A new connection is made for each: a reload may have ended the last one.
async fn ask(url: &Url) -> Result<Response<Incoming>, HttpError> {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let request = Request::get(&url.0).body(String::new()).expect("an address makes a request");
    Ok(client.request(request).await?)
}

/// The status of the answer to a GET.
///
/// # Errors
/// There is no answer.
pub async fn status(url: &Url) -> Result<u16, HttpError> {
    Ok(ask(url).await?.status().as_u16())
}

/// The answer to a GET, with a body of `max_bytes` at most. It may take any time; dropping it ends the request.
///
/// # Errors
/// There is no answer, or its body is longer or breaks off.
pub async fn get(url: &Url, max_bytes: usize) -> Result<Answer, HttpError> {
    let response = ask(url).await?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), max_bytes).collect().await.map_err(HttpError::Body)?;
    Ok(Answer { status, body: body.to_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_refused_and_not_shown() {
        let error = "http://me:secret@h/".parse::<Url>().expect_err("it would not be sent");
        assert_eq!(error, "a user and a password are not sent: expected http://HOST[:PORT]/PATH");
    }

    #[test]
    fn what_is_below_an_address_keeps_its_folder() {
        for (base, expected) in [
            ("http://h:81", "http://h:81/x?y"),
            ("http://h/", "http://h/x?y"),
            ("http://[::1]:81/a/", "http://[::1]:81/a/x?y"),
        ] {
            let base: Url = base.parse().expect("an address");
            assert_eq!(base.below(&PathAndQuery::from_static("/x?y")).to_string(), expected);
        }
    }
}
