//! Whom a confined process can talk to.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub)]

mod common;

use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use common::{Place, holds, script, text};
use outrigger_sandbox::{Network, Part, Policy, Refused, State, hint, is_confined, setting};

const SOCKETS: &str = r"
import socket
def connect(port, address='127.0.0.1', family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(10)
        s.connect((address, port))
def bind(port):
    with socket.socket() as s:
        s.bind(('127.0.0.1', port))
";

fn with(body: &str) -> String {
    script(&format!("{SOCKETS}{body}"))
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn ports(place: &Place, ports: &[u16]) -> Policy {
    Policy { network: Network::Ports(ports.to_vec()), ..place.policy() }
}

#[test]
fn with_the_network_off_no_internet_socket_can_be_made() {
    let place = Place::new();
    if !holds(&place.policy(), &[Part::Network, Part::SystemCalls]) {
        return;
    }
    let (_listener, port) = listener();
    place.passes(
        &place.policy(),
        &with(&format!(
            r"
refused(lambda: connect({port}), errno.EACCES)
refused(lambda: bind(0), errno.EACCES)
for family in [socket.AF_INET, socket.AF_INET6, socket.AF_PACKET, socket.AF_NETLINK, 40, 38]:
    for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW]:
        refused(lambda: socket.socket(family, kind), errno.EACCES)
# Libraries that look around do not fall over it.
import asyncio, uuid, getpass, platform
assert asyncio.run(asyncio.sleep(0, 'x')) == 'x'
uuid.uuid1(), uuid.uuid4(), platform.node()
try:
    socket.getaddrinfo('no-such-host.invalid', 80)
except socket.gaierror:
    pass
assert socket.getaddrinfo('127.0.0.1', 80)
"
        )),
    );
}

#[test]
fn with_the_network_on_it_is_open() {
    let place = Place::new();
    let (_listener, port) = listener();
    let policy = Policy { network: Network::On, ..place.policy() };
    place.passes(
        &policy,
        &with(&format!(
            r"
connect({port})
bind(0)
socket.socket(socket.AF_INET6).close()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
assert socket.if_nameindex()
"
        )),
    );
    assert_eq!(
        policy.prepare().report().state(Part::Network),
        Some(&State::Off { setting: setting::NETWORK })
    );
    if holds(&policy, &[Part::SystemCalls]) {
        place.passes(
            &policy,
            &with(
                r"
for family, kind in [(socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_RAW), (38, socket.SOCK_SEQPACKET)]:
    refused(lambda: socket.socket(family, kind), errno.EACCES)
",
            ),
        );
    }
}

#[test]
fn a_declared_port_is_open_and_no_other() {
    let place = Place::new();
    let (_open, port) = listener();
    let (_closed, other) = listener();
    let policy = ports(&place, &[port]);
    if !holds(&policy, &[Part::Network, Part::SystemCalls]) || needs_landlock_ports(&policy) {
        return;
    }
    place.passes(
        &policy,
        &with(&format!(
            r"
connect({port})
refused(lambda: connect({other}), errno.EACCES)
refused(lambda: bind(0), errno.EACCES)
refused(lambda: bind({port}), errno.EACCES)
refused(lambda: socket.socket(socket.AF_INET6), errno.EACCES)
refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), errno.EACCES)
refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW), errno.EACCES)
# Ways around the kernel's rule for ports: other protocols that are streams too, a connection that opens with its first bytes,
# listening without a port.
for protocol in [262, 132]:
    refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol), errno.EACCES)
refused(lambda: socket.socket().sendto(b'x', 0x20000000, ('127.0.0.1', {other})), errno.EACCES)
refused(lambda: socket.socket().sendmsg([b'x'], [], 0x20000000, ('127.0.0.1', {other})), errno.EACCES)
refused(lambda: socket.socket().listen(), errno.EACCES)
"
        )),
    );
}

#[test]
fn the_collectors_port_works_as_its_client_uses_it() {
    let place = Place::new();
    let (listener, port) = listener();
    let policy = ports(&place, &[port]);
    if !holds(&policy, &[Part::Network]) || needs_landlock_ports(&policy) {
        return;
    }
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let length = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    place.passes(
        &policy,
        &with(&format!(
            "import urllib.request\nassert urllib.request.urlopen('http://localhost:{port}/modeldata/log', b'{{}}').read() == b'ok'"
        )),
    );
    assert!(server.join().unwrap().starts_with("POST /modeldata/log"));
}

#[test]
fn datagrams_do_not_leave() {
    let place = Place::new();
    let (open, port) = listener();
    let policy = ports(&place, &[port]);
    drop(open);
    if !holds(&policy, &[Part::Network, Part::SystemCalls]) || needs_landlock_ports(&policy) {
        return;
    }
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap().port();
    place.passes(
        &policy,
        &with(&format!("refused(lambda: socket.socket().sendto(b'x', ('127.0.0.1', {address})), errno.EPIPE, errno.EACCES)")),
    );
    udp.set_nonblocking(true).unwrap();
    assert!(udp.recv(&mut [0]).is_err());
}

/// As the replica's socket for management: mode 0600, the same user.
#[test]
fn a_unix_socket_of_the_replica_is_out_of_reach() {
    let place = Place::new();
    if !holds(&place.policy(), &[Part::UnixSockets, Part::SystemCalls]) {
        return;
    }
    let path = place.path("scratch/admin.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let body = with(
        r"
path = root + '/scratch/admin.sock'
refused(lambda: socket.socket(socket.AF_UNIX).connect(path), errno.EACCES)
# Nor by a socket that is there already.
left, right = socket.socketpair()
refused(lambda: left.connect(path), errno.EISCONN)
refused(lambda: left.sendto(b'x', path), errno.EISCONN, errno.EOPNOTSUPP)
refused(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), errno.EACCES)
left.send(b'x'); assert right.recv(1) == b'x'
",
    );
    place.passes(&place.policy(), &body);
    place.passes(&ports(&place, &[50011]), &body);
}

#[test]
fn unix_sockets_can_be_allowed_without_the_network() {
    let place = Place::new();
    let policy = Policy { unix_sockets: true, ..place.policy() };
    if !holds(&policy, &[Part::Network, Part::SystemCalls]) {
        return;
    }
    place.passes(
        &policy,
        &with(
            r"
import multiprocessing as mp
with mp.Manager() as manager:
    assert manager.list([1, 2])[1] == 2
with mp.get_context('forkserver').Pool(1) as pool:
    assert pool.map(abs, [-1]) == [1]
refused(lambda: socket.socket(socket.AF_INET), errno.EACCES)
",
        ),
    );
}

#[test]
fn abstract_addresses_of_others_are_out_of_reach() {
    use std::os::linux::net::SocketAddrExt;
    let place = Place::new();
    let policy = Policy { network: Network::On, ..place.policy() };
    if !holds(&policy, &[Part::Signals]) {
        return;
    }
    let name = format!("outrigger-sandbox-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    place.passes(
        &policy,
        &with(&format!(
            r"
refused(lambda: socket.socket(socket.AF_UNIX).connect('\0{name}'), errno.EPERM)
own = socket.socket(socket.AF_UNIX); own.bind('\0{name}-own'); own.listen()
socket.socket(socket.AF_UNIX).connect('\0{name}-own')
"
        )),
    );
}

#[test]
fn a_listener_tells_workers_from_operators() {
    let place = Place::new();
    let policy = Policy { network: Network::On, ..place.policy() };
    if !holds(&policy, &[Part::SystemCalls]) {
        return;
    }
    let path = place.path("scratch/admin.sock");
    let listener = UnixListener::bind(&path).unwrap();

    let _operator = UnixStream::connect(&path).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert!(!is_confined(accepted.as_fd()).unwrap());

    // A worker, and a child of it that hands its connection on and is gone when we look.
    let mut command = place.command(&with(
        r"
s = socket.socket(socket.AF_UNIX); s.connect(root + '/scratch/admin.sock')
t = socket.socket(socket.AF_UNIX)
child = os.fork()
if child == 0:
    t.connect(root + '/scratch/admin.sock'); os._exit(0)
os.waitpid(child, 0)
print('ready', flush=True)
sys.stdin.read()
",
    ));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    policy.prepare().confine(&mut command, None).unwrap();
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    for _ in 0..2 {
        let (accepted, _) = listener.accept().unwrap();
        assert!(is_confined(accepted.as_fd()).unwrap());
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_refusal_leads_to_its_setting() {
    let place = Place::new();
    let prepared = place.policy().prepare();
    if !holds(&place.policy(), &[Part::Network, Part::Files, Part::SystemCalls]) {
        return;
    }
    let cases = [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", setting::NETWORK),
        ("import os; open(os.environ['ROOT'] + '/outside/secret')", setting::READ),
        ("import os; os.chroot('/')", setting::OFF),
    ];
    for (statement, expected) in cases {
        // As the worker host finds out.
        let body = format!(
            "try:\n    {statement}\nexcept OSError as error:\n    print(error.errno, int(error.filename is not None and error.errno != 1))"
        );
        let output = place.run(&prepared, &body);
        let told = text(&output);
        let mut numbers = told.split_whitespace().map(|number| number.parse::<i32>().unwrap());
        let refused = Refused::from_errno(numbers.next().unwrap(), numbers.next().unwrap() == 1).unwrap();
        let hint = hint(refused, prepared.report()).unwrap();
        assert!(hint.contains(expected), "{statement}: {hint}");
    }
}

/// Whether the kernel cannot hold ports; says that the test was skipped.
fn needs_landlock_ports(policy: &Policy) -> bool {
    let lacks = matches!(policy.prepare().report().state(Part::Network), Some(State::Partly { .. }));
    if lacks {
        println!("skipped: this kernel has no rules for ports");
    }
    lacks
}
