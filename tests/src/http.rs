//! The least of an HTTP client: one request on one connection of this machine.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request and returns the status and the body. Panics when nobody listens at the address.
pub async fn http(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    // A caller may name another host: the fake AWS tells services apart by it.
    let host = headers.iter().any(|(name, _)| *name == "Host");
    let own_host = [("Host", address)].into_iter().filter(|_| !host);
    let headers: String =
        own_host.chain(headers.iter().copied()).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.0\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    let mut stream = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.expect("the server answers");
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    (status, reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
