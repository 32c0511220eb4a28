//! The listener's thread: it accepts, reads, answers, and never takes the GIL.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tideloop_sys::clock;
use tideloop_sys::selector::{Events, Interest};
use tideloop_sys::serving::{Listening, is_trusted};
use tideloop_sys::socket;

use super::connection::{Connection, Over};
use super::{Shared, locked};

/// Connections at each door.
const MOST: usize = 32;

/// How long nobody is accepted after that has failed: there are no descriptors left. In nanoseconds.
const PAUSE: u64 = 100_000_000;

/// The keys of the doors; those of connections follow.
const LOCAL: u64 = 0;
const PORT: u64 = 1;

/// The sockets, and who is served.
pub struct Listener {
    shared: Arc<Shared>,
    doors: BTreeMap<u64, Door>,
    connections: BTreeMap<u64, Client>,
    next: u64,
}

struct Door {
    listening: Listening,
    /// Not watched until then.
    rests_until: Option<u64>,
}

struct Client {
    connection: Connection,
    /// What the selector watches for.
    watched: Interest,
}

impl Listener {
    pub fn new(shared: Arc<Shared>, local: Option<Listening>) -> io::Result<Self> {
        let mut listener = Self {
            shared,
            doors: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: PORT + 1,
        };
        if let Some(local) = local {
            listener.open(LOCAL, local)?;
        }
        Ok(listener)
    }

    fn open(&mut self, key: u64, listening: Listening) -> io::Result<()> {
        self.shared
            .selector
            .add(listening.raw(), key, Interest::READ)?;
        self.doors.insert(
            key,
            Door {
                listening,
                rests_until: None,
            },
        );
        Ok(())
    }

    /// Serves until it is to put itself aside.
    pub fn run(mut self) -> Self {
        let mut events = Events::default();
        while !self.shared.pausing.load(Ordering::Relaxed) {
            let opened = locked(&self.shared.web).opened.take();
            if let Some(opened) = opened
                && self.open(PORT, opened).is_err()
            {
                // It cannot be watched: nobody will be told of it.
                locked(&self.shared.web).port = None;
            }
            let now = clock::monotonic_ns();
            self.tick(now);
            let timeout = self.wakes_at().map(|wake| wake.saturating_sub(now));
            if self.shared.selector.wait(&mut events, timeout).is_err() {
                break;
            }
            let now = clock::monotonic_ns();
            for event in events.iter() {
                match event.key {
                    LOCAL | PORT => self.accept(event.key, now),
                    key => self.with(key, |connection, shared| connection.ready(now, shared)),
                }
            }
        }
        self
    }

    fn wakes_at(&self) -> Option<u64> {
        let clients = self.connections.values();
        let clients = clients.map(|client| client.connection.wakes_at());
        let doors = self.doors.values().filter_map(|door| door.rests_until);
        clients.chain(doors).min()
    }

    fn tick(&mut self, now: u64) {
        let keys: Vec<u64> = self.connections.keys().copied().collect();
        for key in keys {
            self.with(key, |connection, shared| connection.tick(now, shared));
        }
        for (&key, door) in &mut self.doors {
            if door.rests_until.is_some_and(|until| now >= until) {
                let raw = door.listening.raw();
                let added = self.shared.selector.add(raw, key, Interest::READ);
                door.rests_until = added.err().map(|_| now + PAUSE);
            }
        }
    }

    /// Does this with a connection, which is closed if it is over then.
    fn with(&mut self, key: u64, act: impl FnOnce(&mut Connection, &Shared) -> Result<(), Over>) {
        let Some(client) = self.connections.get_mut(&key) else {
            return;
        };
        let went_on = act(&mut client.connection, &self.shared).is_ok();
        if !went_on || watch(&self.shared, key, client).is_err() {
            self.close(key);
        }
    }

    fn close(&mut self, key: u64) {
        if let Some(client) = self.connections.remove(&key)
            && !client.watched.is_none()
        {
            // If it cannot be removed, closing it does.
            let raw = client.connection.socket.raw();
            self.shared.selector.remove(raw).ok();
        }
    }

    fn accept(&mut self, key: u64, now: u64) {
        loop {
            let Some(door) = self.doors.get_mut(&key) else {
                return;
            };
            match door.listening.accept() {
                Ok(socket) => {
                    let by_port = key == PORT;
                    let trusted = !by_port && is_trusted(&socket);
                    let connection = Connection::new(socket, by_port, trusted, now, &self.shared);
                    self.admit(connection);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It went before it was let in.
                Err(error)
                    if socket::would_block(&error)
                        || error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    let removed = self.shared.selector.remove(door.listening.raw());
                    door.rests_until = removed.is_ok().then_some(now + PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, connection: Connection) {
        let by_port = connection.by_port;
        let mut here = self
            .connections
            .iter()
            .filter(|(_, client)| client.connection.by_port == by_port);
        let count = here.clone().count();
        let oldest = here.find(|(_, client)| client.connection.gives_way());
        match oldest.map(|(&key, _)| key) {
            _ if count < MOST => {}
            Some(oldest) => self.close(oldest),
            // All of them follow.
            None => return,
        }
        let key = self.next;
        self.next += 1;
        let client = Client {
            connection,
            watched: Interest::NONE,
        };
        self.connections.insert(key, client);
        self.with(key, |_, _| Ok(()));
    }
}

/// Has the selector watch for what the connection waits for.
fn watch(shared: &Shared, key: u64, client: &mut Client) -> io::Result<()> {
    let wanted = client.connection.interest();
    if wanted == client.watched {
        return Ok(());
    }
    let raw = client.connection.socket.raw();
    match (client.watched.is_none(), wanted.is_none()) {
        (true, _) => shared.selector.add(raw, key, wanted)?,
        (false, true) => shared.selector.remove(raw)?,
        (false, false) => shared.selector.modify(raw, key, wanted)?,
    }
    client.watched = wanted;
    Ok(())
}
