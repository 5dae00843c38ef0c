//! `qiyu health`: asks the process beside it whether it is ready. For
//! containers: their images have nothing else that speaks HTTP.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};

/// How long each step may take. An answer is a matter of milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The answer is a few hundred bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// What `/readyz` of the process that listens on `listen` says.
///
/// # Errors
///
/// When nobody answers there, or the answer is not 200: then with its text.
pub(crate) fn ask(listen: SocketAddr) -> anyhow::Result<String> {
    let address = reachable(listen);
    let asked = || -> std::io::Result<String> {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        write!(socket, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = asked().with_context(|| format!("ask {address} (QIYU_HTTP_LISTEN)"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if answer.split(' ').nth(1) != Some("200") {
        bail!("not ready: {body}");
    }
    Ok(body.to_owned())
}

/// Whoever listens on every address is asked on the nearest.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_asked_on_the_nearest() {
        for (listen, asked) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
