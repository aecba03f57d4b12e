//! Neuronpedia's upload as far as a client sees it: a server on this machine that checks what it is sent against the schema of
//! `POST /api/feature/upload-batch` (apps/webapp/app/api/feature/upload-batch/route.tsx).

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::fixture::Place;

pub(crate) const KEY: &str = "sk-np-test-0123456789";

/// A request as it arrived.
#[derive(Clone)]
pub(crate) struct Received {
    pub(crate) line: String,
    /// With names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| &**value)
    }

    /// The numbers of the features in it.
    pub(crate) fn features(&self) -> Vec<u64> {
        let features = self.body["features"].as_array().unwrap();
        features.iter().map(|feature| feature["index"].as_u64().unwrap()).collect()
    }
}

/// A server, which lives as long as the tests.
pub(crate) struct Server {
    pub(crate) url: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Server {
    /// Answers with what `answer` says of the number of the request, a status and a body; where it has nothing to say, as Neuronpedia
    /// does.
    pub(crate) fn start(answer: impl Fn(usize) -> Option<(u16, String)> + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&received);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read(&stream) else { continue };
                let number = own.lock().unwrap().len();
                own.lock().unwrap().push(request.clone());
                let (status, body) = answer(number).unwrap_or_else(|| judge(&request));
                let head = format!(
                    "HTTP/1.1 {status} Said\r\nlocation: https://elsewhere.invalid/\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                // A client that was stopped no longer listens.
                let _ = stream.write_all((head + &body).as_bytes());
            }
        });
        Server { url, received }
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Received> {
    let mut reader = BufReader::new(stream);
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let line = next()?;
    let mut headers = Vec::new();
    loop {
        let header = next()?;
        let Some((name, value)) = header.split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Received { line, headers, body: serde_json::from_slice(&body).ok()? })
}

/// What Neuronpedia answers.
fn judge(request: &Received) -> (u16, String) {
    if request.line != "POST /api/feature/upload-batch HTTP/1.1" {
        return (404, "{}".to_owned());
    }
    if request.header("x-api-key") != Some(KEY) {
        return (401, r#"{"error":"This endpoint requires authorization."}"#.to_owned());
    }
    match check(&request.body) {
        Ok(()) => (200, r#"{"message":"features created."}"#.to_owned()),
        Err(why) => (400, serde_json::json!({ "error": why }).to_string()),
    }
}

/// The schema. A number is one, a text has something in it.
pub(crate) fn check(body: &Value) -> Result<(), String> {
    let known = |of: &Value, keys: &[&str]| -> Result<(), String> {
        let object = of.as_object().ok_or("no object")?;
        object
            .keys()
            .find(|key| !keys.contains(&key.as_str()))
            .map_or(Ok(()), |key| Err(format!("{key} is unknown")))
    };
    let text = |of: &Value, what: &str| -> Result<(), String> {
        let text = of.as_str().filter(|text| !text.is_empty() && !text.contains('\0'));
        text.map(|_| ()).ok_or_else(|| format!("{what} is a required field"))
    };
    let optional = |of: &Value, what: &str, least: f64, most: f64| -> Result<(), String> {
        match of.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(()),
            None if of.is_null() => Ok(()),
            _ => Err(format!("{what} is {of}")),
        }
    };
    let list = |of: &Value, what: &str, least: usize, most: usize| -> Result<Vec<Value>, String> {
        let list = of.as_array().filter(|list| (least..=most).contains(&list.len()));
        list.cloned().ok_or_else(|| format!("{what} must have {least} to {most} entries"))
    };
    known(body, &["modelId", "source", "features"])?;
    for name in ["modelId", "source"] {
        text(&body[name], name)?;
        let name = body[name].as_str().unwrap_or_default();
        (name == name.to_lowercase()).then_some(()).ok_or("names are in lower case")?;
    }
    let mut indexes = BTreeSet::new();
    for feature in list(&body["features"], "features", 1, 128)? {
        known(&feature, &["index", "density", "topLogits", "bottomLogits", "explanations", "activations"])?;
        let index = feature["index"].as_u64().filter(|index| *index <= 10_000_000).ok_or("index")?;
        indexes.insert(index).then_some(()).ok_or("All indexes must be unique.")?;
        optional(&feature["density"], "density", 0.0, 1.0)?;
        for logits in
            ["topLogits", "bottomLogits"].map(|name| &feature[name]).into_iter().filter(|of| !of.is_null())
        {
            for logit in list(logits, "logits", 0, 20)? {
                known(&logit, &["token", "value"])?;
                text(&logit["token"], "token")?;
                logit["value"].as_f64().ok_or("value")?;
            }
        }
        for activation in list(&feature["activations"], "activations", 1, usize::MAX)? {
            known(&activation, &["tokens", "values", "quantileMin", "quantileMax", "quantileFraction"])?;
            let tokens = list(&activation["tokens"], "tokens", 1, 1024)?;
            tokens.iter().try_for_each(|token| text(token, "token"))?;
            let values = list(&activation["values"], "values", 1, 1024)?;
            values.iter().all(Value::is_number).then_some(()).ok_or("values")?;
            (tokens.len() == values.len()).then_some(()).ok_or("tokens and values")?;
            optional(&activation["quantileMin"], "quantileMin", f64::NEG_INFINITY, 99_999_999.0)?;
            optional(&activation["quantileMax"], "quantileMax", f64::NEG_INFINITY, 99_999_999.0)?;
            optional(&activation["quantileFraction"], "quantileFraction", 0.0, 1.0)?;
        }
    }
    Ok(())
}

/// Runs it.
pub(crate) fn with_key(place: &Place, line: &str) -> Output {
    keyed(place, line).output().unwrap()
}

/// The program with a key, and without anybody's proxy.
pub(crate) fn keyed(place: &Place, line: &str) -> Command {
    let mut command = place.command(line);
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env("NEURONPEDIA_API_KEY", KEY);
    command
}
