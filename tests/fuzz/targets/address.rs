//! Who is really calling, by what proxies say. Whatever a client sends itself, the address that the nearest trusted proxy
//! has written is the one that counts; who is no proxy is not believed at all.

use std::{
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use arbitrary::Arbitrary;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};
use blobcast::{config::ForwardedHeader, ingest::TrustedProxies};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROXY: LazyLock<IpAddr> = LazyLock::new(|| "10.0.0.1".parse().unwrap());

#[derive(Arbitrary, Debug)]
pub(crate) struct Input<'a> {
    forwarded: bool,
    /// Lines of the header as the client has sent them.
    sent: Vec<&'a [u8]>,
    /// The client as its proxy sees it, and how that writes it.
    client: IpAddr,
    port: Option<u16>,
    brackets: bool,
    /// The proxy appends to the last line that was sent, instead of adding its own.
    appends: bool,
    /// How many more trusted proxies follow.
    more_proxies: u8,
}

pub(crate) fn run(input: Input<'_>) {
    let client = input.client.to_canonical();
    let header = if input.forwarded {
        ForwardedHeader::Forwarded
    } else {
        ForwardedHeader::XForwardedFor
    };
    let networks = ["10.0.0.0/8", "fd00::/8"]
        .map(|network| network.parse().unwrap())
        .to_vec();
    let proxies = TrustedProxies { networks, header };

    let sent: Vec<_> = input
        .sent
        .iter()
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
        .collect();
    let of_stranger = proxies.client(input.client, &headers(&input, &sent));
    assert!(
        proxies.trust(client) || of_stranger == client,
        "a stranger is believed"
    );
    assert_eq!(proxies.client(*PROXY, &HeaderMap::new()), *PROXY);

    let mut lines: Vec<Vec<u8>> = sent.iter().map(|line| line.as_bytes().to_vec()).collect();
    append(&mut lines, &element(&input, client), input.appends);
    for number in 0..input.more_proxies % 4 {
        let hop: IpAddr = [10, 1, 1, number].into();
        append(
            &mut lines,
            &if input.forwarded {
                format!("for={hop}")
            } else {
                hop.to_string()
            },
            true,
        );
    }
    let values: Vec<_> = lines
        .iter()
        .map(|line| HeaderValue::from_bytes(line).expect("it was one before"))
        .collect();
    let found = proxies.client(*PROXY, &headers(&input, &values));
    if proxies.trust(client) {
        assert_eq!(found, found.to_canonical());
    } else {
        assert_eq!(
            found,
            client,
            "behind {:?}",
            lines
                .iter()
                .map(|line| line.escape_ascii().to_string())
                .collect::<Vec<_>>()
        );
    }
}

fn headers(input: &Input<'_>, values: &[HeaderValue]) -> HeaderMap {
    let name = if input.forwarded {
        FORWARDED
    } else {
        X_FORWARDED_FOR
    };
    values.iter().fold(HeaderMap::new(), |mut headers, value| {
        headers.append(name.clone(), value.clone());
        headers
    })
}

fn append(lines: &mut Vec<Vec<u8>>, element: &str, to_the_last: bool) {
    match lines.last_mut().filter(|_| to_the_last) {
        Some(line) => line.extend_from_slice(format!(", {element}").as_bytes()),
        None => lines.push(element.into()),
    }
}

/// As the proxy writes its client.
fn element(input: &Input<'_>, client: IpAddr) -> String {
    let node = match (input.port, client) {
        (Some(port), _) => SocketAddr::new(client, port).to_string(),
        (None, IpAddr::V6(_)) if input.brackets => format!("[{client}]"),
        _ => client.to_string(),
    };
    if input.forwarded {
        format!("proto=https;for=\"{node}\";by=10.0.0.1")
    } else {
        node
    }
}
