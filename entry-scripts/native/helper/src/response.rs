//! What a script answers.

use std::fmt;

use outrigger_script_abi as abi;

use crate::Buffer;

/// A response.
pub struct Response {
    status: u16,
    content_type: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Body,
}

enum Body {
    Owned(Box<dyn AsRef<[u8]> + Send>),
    /// In memory of the host's, which outlives the call; its address and length.
    Lent(abi::Bytes),
}

impl Response {
    /// Status 200 with a body, which is handed over and not copied.
    pub fn new(content_type: impl Into<String>, body: impl AsRef<[u8]> + Send + 'static) -> Self {
        Self::with(content_type.into(), Body::Owned(Box::new(body)))
    }

    /// Status 200 with a JSON text.
    pub fn json(text: impl Into<String>) -> Self {
        Self::new("application/json", text.into())
    }

    /// Status 200 with a body that lies in memory of the host's, and is sent from there.
    pub fn in_place(content_type: impl Into<String>, body: Buffer<'_>) -> Self {
        Self::with(content_type.into(), Body::Lent(abi::Bytes { data: body.data.as_ptr(), len: body.len() }))
    }

    /// What goes back after a stream; the host does not look at it.
    pub(crate) fn streamed() -> Self {
        Self::with(String::new(), Body::Lent(abi::Bytes::NONE))
    }

    fn with(content_type: String, body: Body) -> Self {
        Self { status: 200, content_type, headers: Vec::new(), body }
    }

    /// Another status: 200 to 599.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// As the ABI has it, and what that points into.
    pub(crate) fn into_raw(self) -> (abi::Response, Box<Owned>) {
        let owned = Box::new(Owned::new(self));
        let raw = abi::Response {
            status: owned.response.status.into(),
            headers: owned.headers.as_ptr(),
            header_count: owned.headers.len(),
            content_type: abi::Bytes::of(owned.response.content_type.as_bytes()),
            body: match &owned.response.body {
                Body::Owned(body) => abi::Bytes::of((**body).as_ref()),
                Body::Lent(bytes) => *bytes,
            },
            ..abi::Response::EMPTY
        };
        (raw, owned)
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

/// A response and its headers as the ABI has them, which point into it.
pub(crate) struct Owned {
    response: Response,
    headers: Vec<abi::Header>,
}

impl Owned {
    fn new(response: Response) -> Self {
        let header = |(name, value): &(String, Vec<u8>)| abi::Header {
            name: abi::Bytes::of(name.as_bytes()),
            value: abi::Bytes::of(value),
        };
        // The texts lie on the heap and stay there when the response is moved.
        let headers = response.headers.iter().map(header).collect();
        Self { response, headers }
    }
}
