//! Headers: what a proxy may not pass on, and what this one adds.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Which endpoint answered, as host and port.
pub(super) const ENDPOINT: HeaderName = HeaderName::from_static("x-hearth-endpoint");
/// Why that one; see [`crate::decide::Explain`].
pub(super) const DECISION: HeaderName = HeaderName::from_static("x-hearth-decision");
/// Endpoints that the request was sent to.
pub(super) const TRIES: HeaderName = HeaderName::from_static("x-hearth-tries");
/// The request's name, in the logs of all who handled it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Restricts the choice to a list of `host:port` or `host`, as the Gateway API Inference Extension names it.
pub const SUBSET_HEADER: HeaderName = HeaderName::from_static("x-gateway-destination-endpoint-subset");

/// Bytes of a request id that is taken over from the client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Headers that are meant for the next hop only, besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes what is meant for the next hop only.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The client's headers as an engine gets them.
pub(super) fn to_engine(mut headers: HeaderMap, request_id: &HeaderValue) -> HeaderMap {
    strip_hop_by_hop(&mut headers);
    // The body is whole by now, and its length and the host are the client's of that hop.
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT, SUBSET_HEADER] {
        headers.remove(name);
    }
    headers.insert(REQUEST_ID, request_id.clone());
    headers
}

/// The client's name for its request, if it gave one that can be logged.
pub(super) fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    (!id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX).then(|| id.to_owned())
}

/// All values of the subset header as one list.
pub(super) fn subset(headers: &HeaderMap) -> String {
    let values = headers.get_all(SUBSET_HEADER).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|&(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn hop_by_hop_headers_stay_behind() {
        let from_client = headers(&[
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("host", "gateway"),
            ("content-length", "3"),
            ("authorization", "Bearer k"),
            ("x-gateway-destination-endpoint-subset", "a:1"),
        ]);
        let sent = to_engine(from_client, &HeaderValue::from_static("r1"));
        assert_eq!(sent, headers(&[("authorization", "Bearer k"), ("x-request-id", "r1")]));
    }

    #[test]
    fn request_ids_are_taken_over_when_they_can_be_logged() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc")])).as_deref(), Some("abc"));
        assert_eq!(request_id(&headers(&[("x-request-id", "")])), None);
        let mut long = HeaderMap::new();
        long.insert(REQUEST_ID, HeaderValue::from_str(&"x".repeat(129)).expect("text"));
        assert_eq!(request_id(&long), None);
    }
}
