//! The wire between one process and NATS: it can break, fall silent and be mended.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wire {
    /// What is written arrives.
    Whole,
    /// Connections end, and no new one can be made.
    Cut,
    /// Nothing arrives, and nobody is told: as where packets are dropped. What was written
    /// arrives late, once it is mended, as TCP has it.
    Silent,
}

/// A wire with somebody at the switch.
pub(crate) struct Switch {
    listen: String,
    state: watch::Sender<Wire>,
}

impl Switch {
    /// A whole wire to `target`.
    pub(crate) async fn before(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let listen = listener.local_addr().expect("a bound port has an address").to_string();
        let state = watch::Sender::new(Wire::Whole);
        let (target, states) = (target.to_owned(), state.subscribe());
        tokio::spawn(answers(listener, target, states));
        Self { listen, state }
    }

    /// The near end, as the setting has it.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.listen)
    }

    pub(crate) fn becomes(&self, wire: Wire) {
        self.state.send_replace(wire);
    }
}

/// Takes connections until the switch is gone; while the wire is cut nobody listens.
async fn answers(mut listener: TcpListener, target: String, mut state: watch::Receiver<Wire>) {
    let listen = listener.local_addr().expect("a bound port has an address");
    loop {
        let mut cut = state.clone();
        tokio::select! {
            accepted = listener.accept() => {
                let (near, _) = accepted.expect("a connection can be taken");
                let (target, state) = (target.clone(), state.clone());
                tokio::spawn(async move { carries(near, &target, state).await });
            }
            done = becomes(&mut cut, |wire| wire == Wire::Cut) => {
                if !done {
                    return;
                }
                drop(listener);
                if !becomes(&mut state, |wire| wire != Wire::Cut).await {
                    return;
                }
                listener = TcpListener::bind(listen).await.expect("its port is still free");
            }
        }
    }
}

/// Whether it came to that; not, if the switch is gone.
async fn becomes(state: &mut watch::Receiver<Wire>, wanted: fn(Wire) -> bool) -> bool {
    state.wait_for(|wire| wanted(*wire)).await.is_ok()
}

/// One connection, until either side ends it or the wire is cut.
async fn carries(near: TcpStream, target: &str, mut state: watch::Receiver<Wire>) {
    if !becomes(&mut state, |wire| wire != Wire::Silent).await || *state.borrow() == Wire::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut cut = state.clone();
    tokio::select! {
        () = copies(near_in, far_out, state.clone()) => {}
        () = copies(far_in, near_out, state) => {}
        _ = becomes(&mut cut, |wire| wire == Wire::Cut) => {}
    }
}

async fn copies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<Wire>) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let Ok(1..) = from.peek(&mut bytes[..1]).await else { return };
        // What a silent wire held back is lost when it is cut.
        if !becomes(&mut state, |wire| wire != Wire::Silent).await || *state.borrow() == Wire::Cut {
            return;
        }
        let Ok(length @ 1..) = from.read(&mut bytes).await else { return };
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
