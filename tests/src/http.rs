//! The least of an HTTP client: one request on one connection of this machine.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request and returns the status and the body. Panics when nobody listens at the address.
pub async fn http(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    request("HTTP/1.0", address, method, path, headers, body).await
}

/// The same to a server that takes nothing older, and may leave the connection open.
pub(crate) async fn http_1_1(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let headers = [("Connection", "close"), ("Content-Type", "application/json")];
    request("HTTP/1.1", address, method, path, &headers, body).await
}

async fn request(
    version: &str,
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let headers = [&[("Host", address)], headers].concat();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let request = format!("{method} {path} {version}\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    let mut stream = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut reply = Vec::new();
    while !is_whole(&reply) && stream.read_buf(&mut reply).await.expect("the server answers") > 0 {}
    let reply = String::from_utf8(reply).expect("the answer is text");
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    (status, reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Whether as much has come as the answer said it would be; one that did not say ends with its connection.
fn is_whole(reply: &[u8]) -> bool {
    let text = String::from_utf8_lossy(reply);
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return false };
    let lengths = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().and_then(|(_, length)| length.trim().parse::<usize>().ok());
    length.is_some_and(|length| reply.len() >= head.len() + 4 + length)
}
