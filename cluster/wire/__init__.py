"""The contracts as protobuf and back, checked on the way in.

Every `…_from_pb` raises `ProtocolError` for what a sound peer cannot have sent: so a hostile or broken message ends
with a clear refusal at the border, and nothing behind it needs to look again.
"""
