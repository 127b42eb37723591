//! A client that sends what it is told and nothing else, one request to a connection.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longer than anything here takes; who waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// All values of a header, in their order.
    pub(super) fn values(&self, name: &str) -> Vec<String> {
        let values = self.headers.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    }
}

/// Sends a request; `None` if the connection closes without an answer.
///
/// # Errors
/// A sentence, if there is no connection, the answer breaks off or does not come in time.
pub(super) async fn send(
    address: &str,
    (method, target): (&str, &str),
    headers: &[(String, String)],
    body: Option<Vec<u8>>,
) -> Result<Option<Answer>, String> {
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, address);
    for (name, value) in headers {
        let name: HeaderName = name.parse().map_err(|_| format!("`{name}` is no name of a header"))?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|error| error.to_string())?;
        request = request.header(name, value);
    }
    if body.is_none() && method == "POST" {
        request = request.header(header::CONTENT_LENGTH, 0);
    }
    let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())));
    let request = request.map_err(|error| error.to_string())?;
    let exchange = exchange(address, request);
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

async fn exchange(address: &str, request: Request<Full<Bytes>>) -> Result<Option<Answer>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("no connection: {error}"))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let answer = match sender.send_request(request).await {
        Ok(response) => {
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| format!("the body breaks off: {error}"))?;
            Ok(Some(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() }))
        }
        Err(error) if error.is_incomplete_message() => Ok(None),
        Err(error) => Err(format!("no HTTP answer: {error}")),
    };
    drop(sender);
    driver.abort();
    answer
}
