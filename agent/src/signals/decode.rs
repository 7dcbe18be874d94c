//! How the consumers' records, and their requests to this node, are read.

use rollcall_shared::{
    codec,
    keys::{Key, Keys},
    model::{
        consumer::ConsumerRecord,
        name::{ConsumerName, TargetId},
        signal::SignalRequest,
    },
    process::error::one_line,
    reflector::Decode,
};

/// Reads the consumers' records.
#[derive(Debug)]
pub struct DecodeConsumer(pub Keys);

/// Reads the requests to this node.
#[derive(Debug)]
pub struct DecodeRequest(pub Keys);

impl Decode for DecodeConsumer {
    type Key = ConsumerName;
    type Value = ConsumerRecord;

    fn key(&self, key: &str) -> Result<ConsumerName, String> {
        match self.0.parse(key) {
            Ok(Key::Consumer(consumer)) => Ok(consumer),
            Ok(_) => Err("not a consumer's key".to_owned()),
            Err(error) => Err(one_line(&error)),
        }
    }

    fn value(&self, _: &ConsumerName, value: Vec<u8>) -> Result<ConsumerRecord, String> {
        codec::decode(&value).map_err(|error| one_line(&error))
    }
}

impl Decode for DecodeRequest {
    type Key = TargetId;
    type Value = SignalRequest;

    fn key(&self, key: &str) -> Result<TargetId, String> {
        match self.0.parse(key) {
            Ok(Key::Signal(_, target)) => Ok(target),
            Ok(_) => Err("not a request's key".to_owned()),
            Err(error) => Err(one_line(&error)),
        }
    }

    fn value(&self, _: &TargetId, value: Vec<u8>) -> Result<SignalRequest, String> {
        codec::decode(&value).map_err(|error| one_line(&error))
    }
}
