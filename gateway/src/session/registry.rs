//! The registry of a gateway incarnation's connections.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use qiyu_schema::ConnId;

use crate::delivery::connection::Connection;

/// The logged-in connections, by id.
#[derive(Default)]
pub(crate) struct ConnectionRegistry {
    connections: RwLock<HashMap<ConnId, Arc<Connection>>>,
    last_id: AtomicU64,
}

impl ConnectionRegistry {
    /// Returns an id that this incarnation has not used before.
    pub(crate) fn next_id(&self) -> ConnId {
        let number = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        ConnId(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }

    pub(crate) fn add(&self, connection: &Arc<Connection>) {
        self.connections.write().insert(connection.id, Arc::clone(connection));
    }

    /// Removes a connection. Returns `false` if it was removed before.
    pub(crate) fn remove(&self, id: ConnId) -> bool {
        self.connections.write().remove(&id).is_some()
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<Arc<Connection>> {
        self.connections.read().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        self.connections.read().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.connections.read().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{frame::Transport, session::identity::ClientIdentity};

    #[test]
    fn a_connection_is_removed_once() {
        let registry = ConnectionRegistry::default();
        let identity = ClientIdentity {
            app: "10001".parse().unwrap(),
            user: "11113".parse().unwrap(),
            nick_name: String::new(),
            avatar: String::new(),
        };
        let (first, second) = (registry.next_id(), registry.next_id());
        assert_ne!(first, second);
        registry.add(&Connection::new(first, identity, Transport::Ws, None));
        assert!(registry.get(first).is_some() && registry.get(second).is_none());
        assert_eq!((registry.remove(first), registry.remove(first)), (true, false));
        assert_eq!(registry.len(), 0);
    }
}
