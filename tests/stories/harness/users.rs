//! The users of `deploy/nats/users.conf`, with passwords of the stories' own.

/// One for each role, who makes the streams, integrators, people, and the servers themselves.
const NAMES: [&str; 10] = [
    "sys",
    "admin",
    "provision",
    "gateway",
    "fanout",
    "presence",
    "living",
    "api",
    "auditor",
    "integrator",
];

/// The user a role is on the bus.
pub(crate) fn of_role(role: &str) -> &str {
    match role {
        "verify" => "auditor",
        other => other,
    }
}

fn password(user: &str) -> String {
    format!("the-password-of-{user}")
}

/// The variables a nats-server with these users needs.
pub(crate) fn passwords() -> Vec<(String, String)> {
    let variable = |user: &str| format!("NATS_{}_PASSWORD", user.to_uppercase());
    NAMES.iter().map(|user| (variable(user), password(user))).collect()
}

/// `nats://host:port`, as this user.
pub(crate) fn url(server: &str, user: &str) -> String {
    server.replacen("://", &format!("://{user}:{}@", password(user)), 1)
}
