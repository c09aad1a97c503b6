"""Where ad events come from besides HTTP: Redis Streams and Kafka."""
