"""The Triton kernel of the verification walk; what launches it stands one folder up."""
