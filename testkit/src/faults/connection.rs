//! A client's connection: request by request, each passed on, and its answer passed back with what is to happen to it.

use std::fs;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use super::{Exchange, Fault, Shared};
use crate::http::{Body, Framing, Head};

/// How long a client may take to fetch what it is to have before a reset.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often in a second a slow answer goes on.
const STEPS: u32 = 20;

/// What becomes of the connection after a request.
#[derive(PartialEq, Eq)]
enum Then {
    GoesOn,
    Ends,
}

type Reader = BufReader<TcpStream>;

/// Serves one to its end.
pub(super) fn serve(shared: &Shared, client: TcpStream, connection: usize) -> io::Result<()> {
    // This and `_open` hold the socket too, and are dropped before it: the connection is closed when this function ends.
    let mut reader = BufReader::new(client.try_clone()?);
    let _open = shared.open(&client)?;
    while let Some(head) = Head::read(&mut reader)? {
        let mut words = head.first.split(' ').map(str::to_owned);
        let exchange = Exchange {
            connection,
            method: words.next().unwrap_or_default().to_ascii_uppercase(),
            target: words.next().unwrap_or_default(),
            range: head.field("range").map(str::to_owned),
            ..Exchange::default()
        };
        let (number, acts, fault) = shared.begin(exchange.clone());
        for act in acts {
            act(&exchange);
        }
        let mut call = Call { shared, client: &client, reader: &mut reader, number, fault };
        if call.serve(&head, &exchange.method)? == Then::Ends {
            break;
        }
    }
    Ok(())
}

/// A request and its answer.
struct Call<'a> {
    shared: &'a Shared,
    client: &'a TcpStream,
    reader: &'a mut Reader,
    number: usize,
    fault: Option<Fault>,
}

impl Call<'_> {
    fn serve(&mut self, head: &Head, method: &str) -> io::Result<Then> {
        if head.field("expect").is_some() {
            self.client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        match self.fault {
            Some(Fault::Status { status, retry_after }) => {
                self.take(Framing::of_request(head)?, None)?;
                self.faulty();
                let fields = retry_after.map_or(String::new(), |after| format!("retry-after: {after}\r\n"));
                self.answer(status, &fields)?;
                Ok(if head.is_last() { Then::Ends } else { Then::GoesOn })
            }
            Some(Fault::Hangup) => {
                self.take(Framing::of_request(head)?, None)?;
                self.faulty();
                self.reset()
            }
            _ => self.pass_on(head, method),
        }
    }

    fn pass_on(&mut self, head: &Head, method: &str) -> io::Result<Then> {
        let framing = Framing::of_request(head)?;
        let Ok(upstream) = TcpStream::connect(self.shared.upstream) else { return self.no_answer() };
        let _open = self.shared.open(&upstream)?;
        let is_sent = (&upstream).write_all(&head.raw).is_ok();
        self.take(framing, is_sent.then_some(&upstream))?;
        let mut reader = BufReader::new(upstream);
        let answer = loop {
            match Head::read(&mut reader) {
                // What it says of the way there is not for the client, which was told already.
                Ok(Some(head)) if (100..200).contains(&head.status()) => {}
                Ok(Some(answer)) => break answer,
                Ok(None) | Err(_) => return self.no_answer(),
            }
        };
        let framing = Framing::of_answer(&answer, method)?;
        let body = Body::new(&mut reader, framing);
        let then = self.pass_back(&answer, body, framing)?;
        let is_last = head.is_last() || answer.is_last() || framing == Framing::UntilTheEnd;
        Ok(if is_last { Then::Ends } else { then })
    }

    /// Takes the request's body, and hands it on. One that is not taken there is taken here all the same: the answer says what is wrong.
    fn take(&mut self, framing: Framing, mut to: Option<&TcpStream>) -> io::Result<()> {
        let mut body = Body::new(self.reader, framing);
        while let Some(piece) = body.next()? {
            self.shared.note(self.number, |exchange| exchange.received += piece.len() as u64);
            to = to.filter(|to| { *to }.write_all(&framing.framed(&piece)).is_ok());
        }
        if let Some(mut to) = to {
            let _ = to.write_all(framing.end());
        }
        Ok(())
    }

    fn pass_back(&mut self, head: &Head, mut body: Body<'_, Reader>, framing: Framing) -> io::Result<Then> {
        if let Some(Fault::Delay(time)) = self.fault {
            self.faulty();
            self.shared.wait(time)?;
        }
        self.shared.note(self.number, |exchange| exchange.status = Some(head.status()));
        self.client.write_all(&head.raw)?;
        let place = self.fault.as_ref().and_then(Fault::place);
        let mut at = 0;
        while let Some(piece) = body.next()? {
            let end = at + piece.len() as u64;
            let inside = place.filter(|place| (at..end).contains(place)).map(|place| (place - at) as usize);
            if self.send_as_told(framing, piece, inside)? == Then::Ends {
                return Ok(Then::Ends);
            }
            at = end;
        }
        self.client.write_all(framing.end())?;
        Ok(Then::GoesOn)
    }

    /// Sends a piece, with what is to happen at a place in it.
    fn send_as_told(
        &mut self,
        framing: Framing,
        mut piece: Vec<u8>,
        place: Option<usize>,
    ) -> io::Result<Then> {
        if let Some(Fault::Slow { bytes_per_second }) = self.fault {
            self.faulty();
            self.send_slowly(framing, &piece, bytes_per_second.get())?;
            return Ok(Then::GoesOn);
        }
        let Some(place) = place else {
            self.send(framing, &piece)?;
            return Ok(Then::GoesOn);
        };
        self.faulty();
        if let Some(Fault::Corrupt { .. }) = self.fault {
            piece[place] ^= 1;
            self.send(framing, &piece)?;
            return Ok(Then::GoesOn);
        }
        let (before, rest) = piece.split_at(place);
        self.send(framing, before)?;
        match self.fault {
            Some(Fault::Reset { .. }) => self.reset(),
            Some(Fault::Truncate { .. }) => {
                self.client.shutdown(Shutdown::Write)?;
                self.until_the_client_leaves()
            }
            Some(Fault::Pause { time, .. }) => {
                self.shared.wait(time)?;
                self.send(framing, rest)?;
                Ok(Then::GoesOn)
            }
            _ => self.until_the_client_leaves(),
        }
    }

    fn send(&mut self, framing: Framing, piece: &[u8]) -> io::Result<()> {
        // An empty chunk would be the last one.
        if piece.is_empty() {
            return Ok(());
        }
        self.shared.note(self.number, |exchange| exchange.sent += piece.len() as u64);
        self.client.write_all(&framing.framed(piece))
    }

    fn send_slowly(&mut self, framing: Framing, piece: &[u8], bytes_per_second: u32) -> io::Result<()> {
        for part in piece.chunks((bytes_per_second / STEPS).max(1) as usize) {
            let seconds = part.len() as f64 / f64::from(bytes_per_second);
            self.shared.wait(Duration::from_secs_f64(seconds))?;
            self.send(framing, part)?;
        }
        Ok(())
    }

    /// Closing is resetting then. What the client's machine has not taken by that time, it does not get; hence the wait.
    fn reset(&mut self) -> io::Result<Then> {
        let deadline = Instant::now() + PATIENCE;
        while untaken(self.client)? > 0 && Instant::now() < deadline {
            self.shared.wait(Duration::from_millis(1))?;
        }
        set_socket_linger(self.client, Some(Duration::ZERO))?;
        Ok(Then::Ends)
    }

    fn until_the_client_leaves(&mut self) -> io::Result<Then> {
        let mut ignored = [0; 1 << 10];
        while self.reader.read(&mut ignored)? > 0 {}
        Ok(Then::Ends)
    }

    /// Says that there was none, to a client that would wait for it.
    fn no_answer(&mut self) -> io::Result<Then> {
        self.answer(502, "connection: close\r\n")?;
        Ok(Then::Ends)
    }

    fn answer(&mut self, status: u16, fields: &str) -> io::Result<()> {
        self.shared.note(self.number, |exchange| exchange.status = Some(status));
        let head = format!("HTTP/1.1 {status} by the proxy\r\n{fields}content-length: 0\r\n\r\n");
        self.client.write_all(head.as_bytes())
    }

    fn faulty(&mut self) {
        self.shared.note(self.number, |exchange| exchange.is_faulty = true);
    }
}

/// How many bytes the other end's machine has not acknowledged.
///
/// Source: Linux, *proc_net_tcp*: `sl local_address rem_address st tx_queue:rx_queue`, in hexadecimal.
fn untaken(socket: &TcpStream) -> io::Result<u64> {
    let ports = (socket.local_addr()?.port(), socket.peer_addr()?.port());
    let text = fs::read_to_string("/proc/net/tcp")?;
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let found = text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let here = (port(words.next()?)?, port(words.next()?)?) == ports;
        let queue = words.nth(1).filter(|_| here)?.split(':').next()?;
        u64::from_str_radix(queue, 16).ok()
    });
    Ok(found.unwrap_or_default())
}
