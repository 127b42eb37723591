//! gRPC frame by frame: also what no careful client sends, and answers that nobody takes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_testkit::ReplicaProcess;
use outrigger_testkit::replica::KEY;
use prost::Message;
use tokio::sync::mpsc;

use crate::support::PATIENCE;

/// Where calls of models go.
pub(crate) const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
/// Where streams of them go.
pub(crate) const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// A connection.
pub(crate) struct Grpc(SendRequest<Pieces>);

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Told {
    /// `grpc-status`; -1 where the answer broke off.
    pub(crate) status: i32,
    /// `outrigger-code`.
    pub(crate) code: String,
    /// The head, and what came behind the messages.
    pub(crate) headers: HeaderMap,
    pub(crate) messages: Vec<Bytes>,
}

impl Told {
    /// Status and code.
    pub(crate) fn outcome(&self) -> (i32, &str) {
        (self.status, &self.code)
    }
}

impl Grpc {
    pub(crate) async fn connect(replica: &ReplicaProcess) -> Self {
        Self::with_window(replica, 1 << 20).await
    }

    /// Takes no more than so many bytes of an answer before somebody reads it.
    pub(crate) async fn with_window(replica: &ReplicaProcess, window: u32) -> Self {
        let stream =
            tokio::net::TcpStream::connect(replica.score.trim_start_matches("http://")).await.unwrap();
        let mut builder = Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Begins a request with the primary key: where its bytes go, and its answer.
    pub(crate) async fn open(
        &mut self,
        path: &str,
        fields: &[(&str, &str)],
    ) -> (mpsc::Sender<Bytes>, Answer) {
        let mut request =
            Request::post(format!("http://replica{path}")).header("content-type", "application/grpc");
        if !fields.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {KEY}"));
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (sender, pieces) = mpsc::channel(1);
        let answer = self.0.send_request(request.body(Pieces(pieces)).unwrap());
        (sender, Answer::Coming(Box::pin(answer)))
    }

    /// Sends these bytes as a whole request, and reads its answer to the end.
    pub(crate) async fn ask(&mut self, path: &str, fields: &[(&str, &str)], bytes: Vec<u8>) -> Told {
        let (sender, answer) = self.open(path, fields).await;
        // Who refuses at once may not read it.
        let _ = sender.send(bytes.into()).await;
        drop(sender);
        answer.told().await
    }
}

type Coming = Pin<Box<dyn Future<Output = hyper::Result<http::Response<Incoming>>> + Send>>;

/// An answer on its way.
pub(crate) enum Answer {
    Coming(Coming),
    There(Box<There>),
    BrokenOff,
}

/// One whose head has come.
pub(crate) struct There {
    head: HeaderMap,
    body: Incoming,
    /// Of a message that is not whole.
    left: BytesMut,
    trailers: HeaderMap,
}

impl Answer {
    /// Waits for its head.
    async fn come(&mut self) {
        if let Self::Coming(coming) = self {
            let response = tokio::time::timeout(PATIENCE, coming).await.expect("an answer");
            *self = match response {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let (left, trailers) = (BytesMut::new(), HeaderMap::new());
                    Self::There(Box::new(There { head: head.headers, body, left, trailers }))
                }
                Err(_) => Self::BrokenOff,
            };
        }
    }

    /// The next message; nothing at its end.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.come().await;
        loop {
            let Self::There(there) = self else { return None };
            let There { body, left, trailers, .. } = &mut **there;
            if let Some(head) = left.first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if left.len() >= 5 + length {
                    return Some(left.split_to(5 + length).split_off(5).freeze());
                }
            }
            match tokio::time::timeout(PATIENCE, body.frame()).await.expect("more of an answer") {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => left.extend_from_slice(&data),
                    Err(frame) => *trailers = frame.into_trailers().unwrap(),
                },
                Some(Err(_)) => *self = Self::BrokenOff,
                None => return None,
            }
        }
    }

    /// The rest of it.
    pub(crate) async fn told(mut self) -> Told {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        let Self::There(there) = self else {
            return Told { status: -1, code: String::new(), headers: HeaderMap::new(), messages };
        };
        let There { head: mut headers, trailers, .. } = *there;
        headers.extend(trailers);
        let text = |name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        Told {
            status: text("grpc-status").parse().unwrap_or(-1),
            code: text("outrigger-code"),
            headers,
            messages,
        }
    }
}

/// A body that gives out what a channel brings.
pub(crate) struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A message with what stands before it.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    framed_as(0, message)
}

/// The same for one that is compressed already.
pub(crate) fn compressed(message: &[u8]) -> Vec<u8> {
    framed_as(1, message)
}

fn framed_as(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[flag], &length[..], message].concat()
}

/// A message with a field behind it that no reader knows, so that all has exactly so many bytes.
pub(crate) fn padded(mut message: Vec<u8>, length: usize) -> Vec<u8> {
    // Field 1000; its length is written in four bytes, however small it is.
    message.extend([0xc2, 0x3e]);
    let rest = length.checked_sub(message.len() + 4).expect("room");
    message.extend([
        rest as u8 | 0x80,
        (rest >> 7) as u8 | 0x80,
        (rest >> 14) as u8 | 0x80,
        (rest >> 21) as u8,
    ]);
    message.resize(length, b'x');
    message
}

/// `ModelInferRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InferRequest {
    #[prost(string, tag = "1")]
    pub(crate) model_name: String,
    #[prost(string, tag = "3")]
    pub(crate) id: String,
    #[prost(message, repeated, tag = "5")]
    pub(crate) inputs: Vec<Input>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) outputs: Vec<Output>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    pub(crate) raw: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Input {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(crate) shape: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Output {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// `ModelInferResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reply {
    #[prost(string, tag = "3")]
    pub(crate) id: String,
    #[prost(map = "string, message", tag = "4")]
    pub(crate) parameters: HashMap<String, Parameter>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub(crate) raw: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Parameter {
    #[prost(string, tag = "3")]
    pub(crate) text: String,
}

/// `ModelStreamInferResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StreamReply {
    #[prost(string, tag = "1")]
    pub(crate) error: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) reply: Option<Reply>,
}

impl StreamReply {
    /// The client's name for the call, and the code of an error.
    pub(crate) fn of(message: &[u8]) -> (String, String) {
        let read = Self::decode(message).unwrap();
        let reply = read.reply.unwrap_or_default();
        let code = reply.parameters.get("outrigger-code").map(|code| code.text.clone()).unwrap_or_default();
        assert_eq!(read.error.is_empty(), code.is_empty(), "{} {code}", read.error);
        (reply.id, code)
    }
}

/// A call of an identity `x` with these shape and bytes.
pub(crate) fn call(model: &str, id: &str, datatype: &str, shape: &[i64], raw: Vec<u8>) -> InferRequest {
    let input = Input { name: "x".into(), datatype: datatype.into(), shape: shape.to_vec() };
    let (model_name, id) = (model.into(), id.into());
    InferRequest { model_name, id, inputs: vec![input], outputs: Vec::new(), raw: vec![raw] }
}
