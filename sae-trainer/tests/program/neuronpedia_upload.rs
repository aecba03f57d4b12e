//! `sae-trainer export --to neuronpedia --upload`, to a server that checks what it is sent.

use std::fs;
use std::process::{Output, Stdio};

use crate::fixture::{Place, signal, text, wait_for};
use crate::neuronpedia::{EXPORT, indexed};
use crate::neuronpedia_server::{KEY, Server, check, keyed, with_key};

/// Nothing that was written or said has the key.
fn assert_no_key(place: &Place, output: &Output) {
    for said in [&output.stdout, &output.stderr] {
        assert!(!text(said).contains(KEY), "{}", text(said));
    }
    for (path, bytes) in place.files("out") {
        assert!(!bytes.windows(KEY.len()).any(|of| of == KEY.as_bytes()), "{}", path.display());
    }
}

#[test]
fn requests_are_sent_once_and_a_second_call_goes_on() {
    let place = indexed();
    // The first is postponed, the third refused.
    let server = Server::start(|number| match number {
        0 => Some((500, format!(r#"{{"error":"try later, {KEY}"}}"#))),
        2 => Some((400, r#"{"error":"features[0].density must be less","path":"x"}"#.to_owned())),
        _ => None,
    });
    let line = format!("{EXPORT} --upload --server {}/", server.url);
    let output = with_key(&place, &line);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("status 500") && told.contains("trying again in 1 s") && told.contains("try later"),
        "{told}"
    );
    assert!(told.contains("request-00001.json: 1 of 3 requests have been sent"), "{told}");
    assert!(told.contains("status 400") && told.contains("features[0].density must be less"), "{told}");
    assert_no_key(&place, &output);

    let output = with_key(&place, &line);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("1 of 3 requests have been sent before"),
        "{}",
        text(&output.stderr)
    );
    assert_no_key(&place, &output);
    let received = server.received();
    assert_eq!(received.len(), 5, "two attempts, one refused, two more");
    for request in &received {
        assert_eq!(request.line, "POST /api/feature/upload-batch HTTP/1.1");
        assert_eq!(
            (request.header("x-api-key"), request.header("content-type")),
            (Some(KEY), Some("application/json"))
        );
        check(&request.body).unwrap();
    }
    assert_eq!(received[0].features(), received[1].features());
    assert_eq!(received[2].features(), received[3].features());
    let taken: Vec<u64> = [1, 3, 4].iter().flat_map(|at| received[*at].features()).collect();
    assert!(taken.is_sorted_by(|a, b| a < b) && taken.len() > 50 && taken.iter().all(|of| of % 3 != 0));

    // All are there, and another server has none.
    assert!(with_key(&place, &line).status.success());
    assert_eq!(server.received().len(), 5);
    let other = Server::start(|_| None);
    let output = with_key(&place, &format!("{EXPORT} --upload --server {}", other.url));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(other.received().len(), 3);
}

#[test]
fn what_a_server_answers_is_told_with_what_to_do() {
    let place = indexed();
    place.run(EXPORT);
    let upload = |url: &str| {
        let output = with_key(&place, &format!("{EXPORT} --upload --server {url}"));
        assert_eq!(output.status.code(), Some(1), "{url}: {}", text(&output.stderr));
        assert_no_key(&place, &output);
        text(&output.stderr)
    };
    for (status, words) in [
        (401, "does not accept the key in NEURONPEDIA_API_KEY"),
        (404, "has no api/feature/upload-batch"),
        (308, "has moved to https://elsewhere.invalid/"),
        (413, "refuses the request (status 413)"),
    ] {
        let server = Server::start(move |_| Some((status, format!("no {KEY}\u{1b}[31m"))));
        let told = upload(&server.url);
        assert!(told.contains(words) && !told.contains('\u{1b}'), "{status}: {told}");
        assert_eq!(server.received().len(), 1, "{status} is final");
    }
    let server = Server::start(|_| Some((503, String::new())));
    let told = upload(&server.url);
    assert!(told.contains("status 503") && told.contains("if the source set does not exist"), "{told}");
    assert_eq!(server.received().len(), 4);
    // A port on which nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let told = upload(&format!("http://127.0.0.1:{port}"));
    assert!(told.contains("cannot be reached") && told.contains("0 of 3 requests"), "{told}");
    // A body that has changed since.
    let path = place.path("out/requests/request-00000.json");
    let changed = fs::read_to_string(&path).unwrap().replacen("\"density\":0", "\"density\":1", 1);
    fs::write(&path, changed).unwrap();
    let server = Server::start(|_| None);
    assert!(upload(&server.url).contains("request-00000.json"));
    assert!(server.received().is_empty());
}

#[test]
fn an_upload_that_is_interrupted_goes_on() {
    let place = indexed();
    place.run(EXPORT);
    let server = Server::start(|number| (number >= 1).then(|| (503, String::new())));
    let line = format!("{EXPORT} --upload --server {}", server.url);
    let mut child = keyed(&place, &line).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, "the second request", || server.received().len() >= 2);
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("1 of 3 requests have been sent"), "{}", text(&output.stderr));
    let server = Server::start(|_| None);
    // The log knows servers apart by their address.
    let log = fs::read_to_string(place.path("out/uploaded.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 1);
    assert!(with_key(&place, &format!("{EXPORT} --upload --server {}", server.url)).status.success());
}
