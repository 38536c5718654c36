"""The calculator service on thriftpy2, which reads the same IDL as Apache Thrift and speaks the same wire."""
