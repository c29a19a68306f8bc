# For the `run` scripts of the peers: writes a PEM file and sets $trusted to its path. The file contains the root
# certificates that a peer trusts by default, and the CA of the stand-in for AWS. With AWS_CA_BUNDLE alone, the trust
# store would be smaller than the one that the peer reads in Lambda.
trust() { # roots, peer's folder
    IFS=/
    set -- "$1" "$2" $AWS_CA_BUNDLE
    roots=$1 folder=$2
    shift 2
    IFS=_
    trusted=$folder/trusted-$*
    unset IFS
    if [ "$trusted" -nt "$AWS_CA_BUNDLE" ] && [ "$trusted" -nt "$roots" ]; then return; fi
    cat "$roots" "$AWS_CA_BUNDLE" > "$trusted.$$"
    mv "$trusted.$$" "$trusted"
}
