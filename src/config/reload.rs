//! Which keys a running broker takes up, and which need a restart. Pure.

use super::Config;

/// Names of keys whose values differ, of those given.
macro_rules! changed {
    ($old:ident, $new:ident: $($section:ident { $($key:ident),* $(,)? })*) => {
        [$($((concat!(stringify!($section), ".", stringify!($key)), $old.$section.$key != $new.$section.$key)),*),*]
    };
}

/// The keys that a reload takes up: their names, and how it takes them.
macro_rules! reloadable {
    ($($section:ident { $($key:ident),* $(,)? })*) => {
        /// Keys that a reload takes up.
        pub const RELOADABLE: &[&str] = &[$($(concat!(stringify!($section), ".", stringify!($key))),*),*];

        impl Config {
            /// What is in force when a running broker with this configuration is given `new`.
            #[must_use]
            pub fn take_up(&self, new: &Self) -> Self {
                let mut in_force = self.clone();
                $($(in_force.$section.$key.clone_from(&new.$section.$key);)*)*
                in_force
            }

            /// What differs of these keys, as `KEY: OLD -> NEW`. None of them holds a secret.
            pub fn changes_to(&self, new: &Self) -> Vec<String> {
                let mut changes = Vec::new();
                $($(if self.$section.$key != new.$section.$key {
                    let key = concat!(stringify!($section), ".", stringify!($key));
                    changes.push(format!("{key}: {:?} -> {:?}", self.$section.$key, new.$section.$key));
                })*)*
                changes
            }
        }
    };
}

reloadable! {
    ingest { body_signature, allowlist, allowed_networks, bytes_per_minute_max }
    log { retention_age_max, retention_bytes_max, segment_age_max, disk_free_min_percent }
    quarantine { retention_age_max, retention_bytes_max, retention_count_max }
    logging { level }
}

/// Keys that differ and need a restart.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let top = [
        ("data_dir", old.data_dir != new.data_dir),
        ("public_url", old.public_url != new.public_url),
        (
            "credentials_file",
            old.credentials_file != new.credentials_file,
        ),
    ];
    let changed = changed! { old, new:
        ingest {
            listen, allow_unverified, trusted_proxies, forwarded_header, proxy_protocol, tls_certificate_file, tls_key_file,
            refusals_per_minute_max, connections_max, connections_per_address_max, body_bytes_max, header_bytes_max,
            headers_max, header_timeout, idle_timeout, body_timeout, answer_timeout, inflight_bytes_max,
        }
        grpc {
            listen, allow_anonymous, tls_certificate_file, tls_key_file, tls_client_ca_file, tls_client_crl_file,
            subscriptions_max, subscriptions_per_client_max, task_ids_max, task_ids_in_all_max, products_max,
            connections_max, connections_per_address_max, keepalive_interval, keepalive_timeout, request_bytes_max,
            inflight_bytes_max, reading_bytes_max, answers_bytes_max, stall_timeout,
        }
        admin { listen, allow_anonymous, hosts, tls_certificate_file, tls_key_file }
        acme { domains, contact, directory_url, directory_ca_file }
        audit { file, required }
        log { expect_existing }
        hub { ring_bytes_max }
        store { cache_bytes }
        shutdown { drain_timeout }
        logging { format }
        traces { otlp_endpoint, sampling_ratio }
    };
    top.into_iter()
        .chain(changed)
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| key)
        .collect()
}
