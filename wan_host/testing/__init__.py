"""What the tests of wan-host and of its plugins share: it ships with the host, so that strangers can use it as well."""
